"""Progress: what callbacks get, how often, and a callback that feeds tqdm."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from . import _core

ProgressCallback = Callable[[float, str], object]

INTERVAL = 5.0
"""Seconds between two calls of a callback, unless it has an ``interval`` of its own."""


class Throttle:
    """Stands between the library, which reports ten times a second, and a user's callback.

    The callback is called the first time, at each change of phase, at the end, and otherwise at
    most once every ``interval`` seconds. When it raises, that is reported once through
    ``sys.unraisablehook`` and the run goes on; KeyboardInterrupt and its kin end the run.

    Args:
        callback: called with a number from 0 to 1 and a message.
    """

    def __init__(self, callback: ProgressCallback) -> None:
        self._callback = callback
        self._interval = float(getattr(callback, "interval", INTERVAL))
        self._phase: str | None = None
        self._last = 0.0
        self._fraction = -1.0
        self._reported = False

    def __call__(self, fraction: float, phase: str, layer: str, done: int, total: int,
                 elapsed: float, eta: float) -> None:
        now = time.monotonic()
        finished = fraction >= 1.0 > self._fraction
        if phase == self._phase and not finished and now - self._last < self._interval:
            return
        message = f"{phase}: {layer}" if layer else phase
        if math.isfinite(eta) and fraction < 1.0 and elapsed > 0:
            message += f" ({eta:.0f} s left)"
        self._phase = phase
        self._tell(fraction, message)

    def finish(self) -> None:
        """The last call, unless it has been made."""
        if self._fraction < 1.0:
            self._tell(1.0, "done")

    def _tell(self, fraction: float, message: str) -> None:
        self._last = time.monotonic()
        self._fraction = max(self._fraction, min(1.0, max(0.0, fraction)))
        try:
            self._callback(self._fraction, message)
        except Exception as problem:
            if not self._reported:
                self._reported = True
                _core.write_unraisable(problem, self._callback)


class TqdmProgress:
    """A progress callback that moves a tqdm bar.

    >>> with TqdmProgress(desc="dream-7b") as bar:              # doctest: +SKIP
    ...     quantizer.quantize_diffusion_model(model, output, progress_callback=bar)

    Args:
        bar: a tqdm-like object (``update``, ``set_postfix_str``, ``close``) with a total of 100;
            ``None``: ``tqdm.auto.tqdm`` makes one.
        **options: for tqdm.

    Raises:
        ImportError: no bar was given and tqdm is not installed.
    """

    interval = 0.1

    def __init__(self, bar: Any = None, **options: Any) -> None:
        if bar is None:
            tqdm = importlib.import_module("tqdm.auto").tqdm
            options.setdefault("bar_format", "{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
            bar = tqdm(total=100, **options)
        self.bar = bar
        self._shown = 0.0

    def __call__(self, progress: float, message: str) -> None:
        """Moves the bar."""
        if hasattr(self.bar, "set_postfix_str"):
            self.bar.set_postfix_str(message, refresh=False)
        self.bar.update(100.0 * progress - self._shown)
        self._shown = 100.0 * progress

    def close(self) -> None:
        """Closes the bar."""
        self.bar.close()

    def __enter__(self) -> TqdmProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
