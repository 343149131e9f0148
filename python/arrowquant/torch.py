"""PyTorch: recording the inputs of layers while a model runs, and putting quantized weights back.

>>> from arrowquant.torch import Recorder                            # doctest: +SKIP
>>> with Recorder(pipe, "calibration.safetensors"):                  # doctest: +SKIP
...     pipe(prompt="a cat", num_inference_steps=50)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch as _torch
from torch.utils.dlpack import from_dlpack as _from_dlpack

from . import _core
from ._model import Path, load_model

_NAMES = ("timestep", "timesteps", "t")
_KINDS = (_torch.nn.Linear, _torch.nn.Conv1d, _torch.nn.Conv2d, _torch.nn.Conv3d)


class Recorder:
    """Records statistics of the inputs of Linear and Conv layers, by timestep.

    Used as a context manager around ordinary runs of the model. What is kept of a layer does not
    grow with the number of runs. The file that it writes is what the config's ``calibration`` and
    the tool's ``--calibration`` take.

    Args:
        model: a torch module, or a diffusers pipeline, whose transformer or unet is recorded.
        path: of the calibration file, written at the end of the ``with`` block unless an exception
            ends it; ``None``: call save.
        timestep: where the timestep comes from: ``None``: the module's argument ``timestep``,
            ``timesteps`` or ``t``; a name: that argument; a callable: called without arguments in each
            forward pass; a diffusers scheduler: its current timestep. A tensor gives each sample of
            the batch a timestep of its own.
        layers: names of the modules to record; all Linear and Conv layers when it is not given.
        second_moments: gather what GPTQ needs, 8 bytes for each pair of channels.
        scale: what a timestep is multiplied by before it is rounded down: num_train_timesteps for
            models whose time runs from 0 to 1.

    Raises:
        TypeError: there is nothing to record in the model.
        ValueError: a layer that is named is not there.
    """

    def __init__(self, model: Any, path: Path | None = None, *,
                 timestep: str | Callable[[], Any] | Any | None = None,
                 layers: Iterable[str] | None = None, second_moments: bool = False,
                 scale: float = 1.0) -> None:
        self._module = _denoiser(model)
        self._path = path
        self._timestep = timestep
        self._scale = scale
        self._observer = _core.Observer(second_moments)
        self._handles: list[Any] = []
        self._now = threading.local()
        found = {name: layer for name, layer in self._module.named_modules()
                 if isinstance(layer, _KINDS)}
        if layers is not None:
            missing = sorted(set(layers) - set(found))
            if missing:
                raise ValueError(f"layers: there is no Linear or Conv layer {missing[0]!r}")
            found = {name: found[name] for name in layers}
        if not found:
            raise TypeError("model: has no Linear or Conv layers to record")
        self._layers = found

    def __enter__(self) -> Recorder:
        self._handles.append(self._module.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name, layer)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._path is not None and kind is None:
            self.save(self._path)

    def save(self, path: Path) -> None:
        """Writes what has been recorded so far.

        Args:
            path: of the calibration file, which is replaced.

        Raises:
            QuantizationError: it cannot be written.
        """
        self._observer.save(path)

    def _begin(self, module: _torch.nn.Module, args: tuple[Any, ...],
               kwargs: dict[str, Any]) -> None:
        self._now.timesteps = self._timesteps(module, args, kwargs)

    def _timesteps(self, module: _torch.nn.Module, args: tuple[Any, ...],
                   kwargs: dict[str, Any]) -> list[int]:
        """One for all samples, or one for each."""
        source = self._timestep
        if source is None or isinstance(source, str):
            value = _argument(module, args, kwargs, (source,) if source else _NAMES)
        elif callable(source) and not hasattr(source, "timesteps"):
            value = source()
        else:
            index = getattr(source, "step_index", None)
            value = source.timesteps[index if index is not None else 0]
        values = _torch.as_tensor(value).detach().flatten().to("cpu", _torch.float64)
        return [int(t) for t in (values * self._scale).floor().tolist()]

    def _hook(self, name: str, layer: _torch.nn.Module) -> Callable[..., None]:
        def hook(module: _torch.nn.Module, args: tuple[Any, ...]) -> None:
            timesteps = getattr(self._now, "timesteps", None)
            if timesteps is None or not args:
                return  # called outside of the model's own forward pass
            with _torch.no_grad():
                self._feed(name, layer, args[0].detach(), timesteps)
        return hook

    def _feed(self, name: str, layer: _torch.nn.Module, x: _torch.Tensor,
              timesteps: list[int]) -> None:
        if not x.numel():
            return
        if isinstance(layer, _torch.nn.Linear):
            if x.dim() < 2:
                x = x[None]
            batches = x.reshape(x.shape[0], -1, x.shape[-1])
        else:
            batches = _patches(layer, x)
        batches = batches.to("cpu")
        same = all(t == timesteps[0] for t in timesteps)
        samples = batches.shape[0]
        if same or samples % len(timesteps):
            self._observer.feed(name, timesteps[0], batches.reshape(-1, batches.shape[-1]))
            return
        # layers see the batch as it is, or several rows of each sample in turn
        per = samples // len(timesteps)
        for t in sorted(set(timesteps)):
            rows = [i * per + j for i, mine in enumerate(timesteps) if mine == t for j in range(per)]
            self._observer.feed(name, t, batches[rows].reshape(-1, batches.shape[-1]))


def _denoiser(model: Any) -> _torch.nn.Module:
    if isinstance(model, _torch.nn.Module):
        return model
    for name in ("transformer", "unet"):
        part = getattr(model, name, None)
        if isinstance(part, _torch.nn.Module):
            return part
    raise TypeError("model: expected a torch module, or a pipeline with a transformer or unet, "
                    f"found {type(model)!r}")


def _argument(module: _torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
              names: Iterable[str]) -> Any:
    import inspect
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    for name in names:
        if bound.get(name) is not None:
            return bound[name]
    raise TypeError(f"timestep: {type(module).__name__}.forward got none of {', '.join(names)}; tell "
                    "the Recorder where the timestep is")


def _patches(layer: Any, x: _torch.Tensor) -> _torch.Tensor:
    """[samples, positions, channels·kernel]: the rows that the weight matrix of a convolution meets.

    Channels of all groups are shown; a grouped layer's weight has a part of them in each row."""
    dims = len(layer.kernel_size)
    if x.dim() == dims + 1:
        x = x[None]
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if isinstance(layer.padding, str) or any(layer.padding):
        x = _torch.nn.functional.pad(x, padding, mode=mode)
    for i in range(dims):
        size, step, gap = layer.kernel_size[i], layer.stride[i], layer.dilation[i]
        x = x.unfold(2 + i, gap * (size - 1) + 1, step)[..., ::gap]
    # [samples, channels, out…, kernel…] -> [samples, out…, channels, kernel…]
    order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
    x = x.permute(order)
    rows = 1
    for length in x.shape[1:1 + dims]:
        rows *= length
    return x.reshape(x.shape[0], rows, -1)


def load_into(module: _torch.nn.Module, path: Path, *, strict: bool = True) -> list[str]:
    """Puts the weights of a quantized model, dequantized, into a module: to see what it does.

    Args:
        module: of the architecture that was quantized; its parameters keep dtype and device.
        path: of the quantized model (or any other); in a pipeline folder the denoiser.
        strict: a tensor that the module lacks, or a parameter that the file lacks, is an error.

    Returns:
        Names of the parameters and buffers that were set.

    Raises:
        KeyError: names differ, with ``strict``.
        ShapeMismatchError: a shape differs.
        ModelNotFoundError: there is no model.
    """
    from ._errors import ShapeMismatchError
    target = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wanted = set(module.state_dict())
    done = []
    with load_model(path) as model:
        missing, unknown = sorted(wanted - set(model)), sorted(set(model) - set(target))
        if strict and (missing or unknown):
            raise KeyError(f"{os.fspath(path)}: " + (f"lacks {missing[0]}" if missing else
                           f"has {unknown[0]}, which the module lacks"))
        for name in model:
            if name not in target:
                continue
            tensor = model[name]
            values = _from_dlpack(_float(tensor))
            if tuple(values.shape) != tuple(target[name].shape):
                raise ShapeMismatchError(f"{name}: expected {tuple(target[name].shape)}, found "
                                         f"{tuple(values.shape)} in {os.fspath(path)}")
            with _torch.no_grad():
                target[name].copy_(values)
            done.append(name)
    return done


def _float(tensor: Any) -> Any:
    """float32 values, or the integers of a tensor that was kept."""
    if isinstance(tensor, _core.Array) and not tensor.dtype.startswith(("float", "bfloat")):
        return tensor
    return tensor.dequantize("float32")
