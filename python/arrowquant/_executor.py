"""One run spread over an executor: its workers make the weight files, the caller the rest."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import _core
from ._config import DiffusionQuantConfig

STOP = ".aq-stop"
"""A file of this name in the temporary folder tells the workers to give up."""


class Executor(Protocol):
    """What is asked of an executor: ``submit`` as in concurrent.futures."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Runs a call somewhere, and gives a future with ``add_done_callback``."""


Report = Callable[[float, str, str, int, int, float, float], None]


def make_output(model_path: str, config: DiffusionQuantConfig, folder: str, output: int) -> int:
    """In a worker: makes one file of a run that was begun elsewhere."""
    stop = os.path.join(folder, STOP)

    def look() -> None:
        if os.path.exists(stop):
            raise RuntimeError("the run was given up")

    _core.Plan(model_path, config).execute_output(folder, output, look)
    return output


def run(executor: Executor, model_path: str, output_path: str, config: DiffusionQuantConfig,
        context: _core.Context, report: Report | None) -> str:
    """A run whose weight files are made by an executor; the result as JSON text."""
    model_path = os.path.abspath(model_path)
    plan = _core.Plan(model_path, config, context)
    try:
        return _spread(executor, plan, model_path, output_path, config, context, report)
    finally:
        plan.close()  # not when the last traceback that holds it goes


def _spread(executor: Executor, plan: _core.Plan, model_path: str, output_path: str,
            config: DiffusionQuantConfig, context: _core.Context, report: Report | None) -> str:
    outputs = plan.outputs()
    folder = plan.begin(output_path)
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    futures = []
    try:
        # the largest first, so that none of them is left for the end
        for output in sorted(range(len(outputs)), key=lambda i: -outputs[i][1]):
            future = executor.submit(make_output, model_path, config, folder, output)
            futures.append(future)
            future.add_done_callback(ended.put)
        _collect(ended, outputs, context, report)
    except BaseException:
        _give_up(futures, folder)
        raise
    plan.execute(output_path)
    return plan.commit()


def _collect(ended: queue.SimpleQueue[Any], outputs: list[tuple[str, int]], context: _core.Context,
             report: Report | None) -> None:
    began = time.monotonic()
    total = sum(size for _, size in outputs)
    done = 0
    for _ in outputs:
        while True:  # short waits, so that Ctrl-C and cancel() come through
            context.check()
            try:
                future = ended.get(timeout=0.1)
                break
            except queue.Empty:
                continue
        path, size = outputs[future.result()]
        done += size
        if report:
            elapsed = time.monotonic() - began
            share = done / total if total else 1.0
            # the end is told after the commit
            report(min(share, 0.999), "quantize", path, done, total, elapsed,
                   elapsed * (1 - share) / share if share else float("nan"))


def _give_up(futures: list[Any], folder: str) -> None:
    """Waits for what runs: nobody may write into the folder when it is removed."""
    with contextlib.suppress(OSError):
        with open(os.path.join(folder, STOP), "w"):
            pass
    for future in futures:
        future.cancel()
    for future in futures:
        if not future.cancelled():
            with contextlib.suppress(BaseException):
                future.exception()
