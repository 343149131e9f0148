"""AsyncArrowQuantV2: the long calls as coroutines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Union

from . import _core, _executor
from ._config import DiffusionQuantConfig
from ._core import Context, QuantizedTensor
from ._quantizer import ArrowQuantV2, BatchResult, Path, Weights
from .progress import INTERVAL

AsyncProgressCallback = Callable[[float, str], Union[object, Awaitable[object]]]


class _Relay:
    """Brings progress from the working thread to the event loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: AsyncProgressCallback) -> None:
        self.interval = float(getattr(callback, "interval", INTERVAL))
        self._loop = loop
        self._callback = callback
        self._tasks: set[asyncio.Future[object]] = set()
        self._reported = False

    def __call__(self, progress: float, message: str) -> None:
        self._loop.call_soon_threadsafe(self._deliver, progress, message)

    def _deliver(self, progress: float, message: str) -> None:
        try:
            made = self._callback(progress, message)
        except Exception as problem:
            self._report(problem)
            return
        if inspect.isawaitable(made):
            task = asyncio.ensure_future(made)
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            problem = task.exception()
            if problem is not None:
                self._report(problem)

    def _report(self, problem: BaseException) -> None:
        if not self._reported:
            self._reported = True
            _core.write_unraisable(problem, self._callback)

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))


class AsyncArrowQuantV2:
    """ArrowQuantV2 for asyncio: each call runs in a thread.

    When its task is cancelled a call stops within a moment, leaves nothing behind, and only then
    raises CancelledError. Progress callbacks, plain or async, run in the event loop's thread.

    Args:
        mode: as in ArrowQuantV2.
        thread_pool: where the calls run; the event loop's default pool when it is not given.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str = "diffusion",
                 thread_pool: concurrent.futures.ThreadPoolExecutor | None = None) -> None:
        self._quantizer = ArrowQuantV2(mode)
        self._pool = thread_pool

    @property
    def mode(self) -> str:
        """``"diffusion"`` or ``"base"``."""
        return self._quantizer.mode

    def __repr__(self) -> str:
        return f"AsyncArrowQuantV2(mode={self.mode!r})"

    async def _run(self, call: Callable[..., Any], callback: AsyncProgressCallback | None,
                   **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        context = Context()
        relay = None
        if callback is not None:
            relay = options["progress_callback"] = _Relay(loop, callback)
        future = loop.run_in_executor(self._pool, lambda: call(context=context, **options))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            context.cancel()
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()  # it is told as CancelledError
            raise
        finally:
            if relay is not None:
                await relay.drain()

    async def quantize_diffusion_model(
            self, model_path: Path, output_path: Path, config: DiffusionQuantConfig | None = None,
            progress_callback: AsyncProgressCallback | None = None, *,
            executor: _executor.Executor | None = None) -> dict[str, Any]:
        """See ArrowQuantV2.quantize_diffusion_model.

        Args:
            model_path: of the model.
            output_path: of the result.
            config: the settings.
            progress_callback: a function or coroutine function of a number and a message.
            executor: makes the shards.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: dict[str, Any] = await self._run(
            self._quantizer.quantize_diffusion_model, progress_callback, model_path=model_path,
            output_path=output_path, config=config, executor=executor)
        return made

    async def quantize_from_safetensors(
            self, safetensors_path: Path, output_path: Path,
            config: DiffusionQuantConfig | None = None,
            progress_callback: AsyncProgressCallback | None = None, *,
            executor: _executor.Executor | None = None) -> dict[str, Any]:
        """See ArrowQuantV2.quantize_from_safetensors.

        Args:
            safetensors_path: of the file, index or folder.
            output_path: of the result.
            config: the settings.
            progress_callback: a function or coroutine function of a number and a message.
            executor: makes the shards.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: dict[str, Any] = await self._run(
            self._quantizer.quantize_from_safetensors, progress_callback,
            safetensors_path=safetensors_path, output_path=output_path, config=config,
            executor=executor)
        return made

    async def validate_quality(
            self, original_path: Path, quantized_path: Path,
            config: DiffusionQuantConfig | None = None,
            progress_callback: AsyncProgressCallback | None = None) -> dict[str, Any]:
        """See ArrowQuantV2.validate_quality.

        Args:
            original_path: of the model that was quantized.
            quantized_path: of the result.
            config: the gates.
            progress_callback: a function or coroutine function of a number and a message.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: dict[str, Any] = await self._run(
            self._quantizer.validate_quality, progress_callback, original_path=original_path,
            quantized_path=quantized_path, config=config)
        return made

    async def quantize(self, weights: Weights, bit_width: int | None = None, *,
                       config: DiffusionQuantConfig | None = None) -> dict[str, QuantizedTensor]:
        """See ArrowQuantV2.quantize.

        Args:
            weights: names to arrays.
            bit_width: 2, 4 or 8.
            config: the settings.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: dict[str, QuantizedTensor] = await self._run(
            self._quantizer.quantize, None, weights=weights, bit_width=bit_width, config=config)
        return made

    async def quantize_batch(self, weights_dict: Weights, bit_width: int | None = None,
                             continue_on_error: bool = False, *,
                             config: DiffusionQuantConfig | None = None) -> BatchResult:
        """See ArrowQuantV2.quantize_batch.

        Args:
            weights_dict: names to arrays.
            bit_width: 2, 4 or 8.
            continue_on_error: leave out what fails.
            config: the settings.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: BatchResult = await self._run(
            self._quantizer.quantize_batch, None, weights_dict=weights_dict, bit_width=bit_width,
            continue_on_error=continue_on_error, config=config)
        return made

    async def quantize_batch_with_progress(
            self, weights_dict: Weights, bit_width: int | None = None,
            progress_callback: AsyncProgressCallback | None = None,
            continue_on_error: bool = False, *,
            config: DiffusionQuantConfig | None = None) -> BatchResult:
        """See ArrowQuantV2.quantize_batch_with_progress.

        Args:
            weights_dict: names to arrays.
            bit_width: 2, 4 or 8.
            progress_callback: a function or coroutine function of a number and a message.
            continue_on_error: leave out what fails.
            config: the settings.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        made: BatchResult = await self._run(
            self._quantizer.quantize_batch_with_progress, progress_callback,
            weights_dict=weights_dict, bit_width=bit_width, continue_on_error=continue_on_error,
            config=config)
        return made

    async def quantize_arrow(self, table: Any, bit_width: int | None = None, *,
                             config: DiffusionQuantConfig | None = None) -> Any:
        """See ArrowQuantV2.quantize_arrow.

        Args:
            table: with Arrow capsules.
            bit_width: 2, 4 or 8.
            config: the settings.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        return await self._run(self._quantizer.quantize_arrow, None, table=table,
                               bit_width=bit_width, config=config)

    async def quantize_arrow_batch(self, record_batch: Any, bit_width: int | None = None,
                                   continue_on_error: bool = False, *,
                                   config: DiffusionQuantConfig | None = None) -> Any:
        """See ArrowQuantV2.quantize_arrow_batch.

        Args:
            record_batch: with Arrow capsules.
            bit_width: 2, 4 or 8.
            continue_on_error: leave out what fails.
            config: the settings.

        Returns:
            As the plain method.

        Raises:
            ArrowQuantError: as the plain method.
        """
        return await self._run(self._quantizer.quantize_arrow_batch, None,
                               record_batch=record_batch, bit_width=bit_width,
                               continue_on_error=continue_on_error, config=config)

    def get_markov_metrics(self) -> dict[str, Any] | None:
        """See ArrowQuantV2.get_markov_metrics."""
        return self._quantizer.get_markov_metrics()
