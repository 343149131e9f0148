"""ArrowQuantV2 and the module's functions."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any, Union

from . import _arrow, _core, _executor, _markov
from ._config import DiffusionQuantConfig
from ._core import Array, Context, QuantizedTensor
from ._errors import ConfigurationError
from .progress import ProgressCallback, Throttle

Path = Union[str, "os.PathLike[str]"]
Weights = Mapping[str, Any]


class BatchResult(dict[str, dict[str, Any]]):
    """Results by layer, and the exceptions of the layers that failed.

    Attributes:
        errors: {name: exception}; empty unless ``continue_on_error`` was set.
    """

    errors: dict[str, Exception]

    def __init__(self) -> None:
        super().__init__()
        self.errors = {}


class ArrowQuantV2:
    """Quantizes diffusion models, and single tensors.

    A quantizer holds no state but its mode and the last Markov metrics; any number of threads may
    use it at once.

    Args:
        mode: ``"diffusion"``, or ``"base"``: the same without what depends on timesteps and
            channels (time-aware and spatial quantization).

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str = "diffusion") -> None:
        if mode not in ("diffusion", "base"):
            raise ValueError(f"mode: expected 'diffusion' or 'base', found {mode!r}")
        self._mode = mode
        self._markov: dict[str, Any] | None = None

    @property
    def mode(self) -> str:
        """``"diffusion"`` or ``"base"``."""
        return self._mode

    def __repr__(self) -> str:
        return f"ArrowQuantV2(mode={self._mode!r})"

    def _effective(self, config: DiffusionQuantConfig | None) -> DiffusionQuantConfig:
        if config is not None and not isinstance(config, DiffusionQuantConfig):
            raise TypeError(f"config: expected a DiffusionQuantConfig, found {type(config)!r}")
        made = config if config is not None else DiffusionQuantConfig()
        if self._mode == "base":
            made = made.copy(enable_time_aware=False, enable_spatial=False)
        return made

    # ------------------------------------------------------------ models

    def quantize_diffusion_model(self, model_path: Path, output_path: Path,
                                 config: DiffusionQuantConfig | None = None,
                                 progress_callback: ProgressCallback | None = None, *,
                                 executor: _executor.Executor | None = None,
                                 context: Context | None = None) -> dict[str, Any]:
        """Quantizes a model folder, pipeline folder, .safetensors file or index.

        The output appears when it is complete, or not at all.

        Args:
            model_path: of the model, which is only read.
            output_path: of the result; refused when it exists, unless ``overwrite`` is set.
            config: the settings; the local profile's when it is not given.
            progress_callback: called with a number from 0 to 1 and a message, at most every five
                seconds, and at the begin, the end and each change of phase.
            executor: a concurrent.futures-style executor whose workers see the same files; they
                make the shards. The result has the same bytes.
            context: lets another thread cancel the call.

        Returns:
            quantized_path, compression_ratio, cosine_similarity, model_size_mb (10^6 bytes),
            modality, bit_width, quantization_time_s; and bits_per_weight, sqnr_db,
            layers_quantized, layers_kept, layers_raised, layers and notes.

        Raises:
            ModelNotFoundError: there is no model.
            ConfigurationError: the config is not valid.
            MetadataError: the model's files are malformed.
            QuantizationError: a weight is not finite, a layer misses a gate with ``fail_fast``, a
                file cannot be read or written, or the call was cancelled.
        """
        settings = self._effective(config)
        report = Throttle(progress_callback) if progress_callback is not None else None
        stopper = context if context is not None else Context(settings.num_threads)
        if executor is not None:
            text = _executor.run(executor, os.fspath(model_path), os.fspath(output_path), settings,
                                 stopper, report)
        else:
            plan = _core.Plan(model_path, settings, stopper)
            try:
                plan.execute(output_path, report)
                text = plan.commit()
            finally:
                plan.close()  # not when the last traceback that holds it goes
        if report:
            report.finish()
        result: dict[str, Any] = json.loads(text)
        if settings.calibration and settings.thermodynamic_validation_enabled:
            self._markov = _markov.metrics(settings, model_path)
        return result

    def quantize_from_safetensors(self, safetensors_path: Path, output_path: Path,
                                  config: DiffusionQuantConfig | None = None,
                                  progress_callback: ProgressCallback | None = None, *,
                                  executor: _executor.Executor | None = None,
                                  context: Context | None = None) -> dict[str, Any]:
        """Quantizes a .safetensors file, an index, or a folder of them.

        Args:
            safetensors_path: of the file, index or folder.
            output_path: of the result; a file when both names end in .safetensors.
            config: as in quantize_diffusion_model, and so the rest.
            progress_callback: see there.
            executor: see there.
            context: see there.

        Returns:
            As quantize_diffusion_model.

        Raises:
            ArrowQuantError: as quantize_diffusion_model.
        """
        return self.quantize_diffusion_model(safetensors_path, output_path, config,
                                             progress_callback, executor=executor, context=context)

    def validate_quality(self, original_path: Path, quantized_path: Path,
                         config: DiffusionQuantConfig | None = None,
                         progress_callback: ProgressCallback | None = None, *,
                         context: Context | None = None) -> dict[str, Any]:
        """Compares every quantized layer with the original, from the files themselves.

        Args:
            original_path: of the model that was quantized.
            quantized_path: of the result.
            config: its min_accuracy and min_sqnr_db are the gates; those that the model was
                quantized with when it is not given.
            progress_callback: as in quantize_diffusion_model.
            context: lets another thread cancel the call.

        Returns:
            cosine_similarity (mean), min_cosine_similarity, compression_ratio, model_size_mb,
            sqnr_db, passed, per_layer_accuracy ({name: cosine similarity}) and layers.

        Raises:
            ModelNotFoundError: one of the two is not there.
            ShapeMismatchError: a layer has another shape.
            MetadataError: a file is malformed, or a layer is missing.
        """
        report = Throttle(progress_callback) if progress_callback is not None else None
        result: dict[str, Any] = json.loads(
            _core.validate(original_path, quantized_path, config, context, report))
        if report:
            report.finish()
        result["per_layer_accuracy"] = {layer["name"]: layer["cosine_similarity"]
                                        for layer in result["layers"]}
        return result

    def get_markov_metrics(self) -> dict[str, Any] | None:
        """How smoothly the activation parameters of neighbouring time groups follow each other.

        Returns:
            Of the last run of this quantizer with calibration data (``None`` before one):
            smoothness_score (1 is smooth), violation_count, is_valid, boundary_scores (means over
            the layers), violations (dicts of boundary_idx, scale_jump, zero_point_jump, severity
            and layer), and layers ({name: smoothness score}).
        """
        return self._markov

    # ------------------------------------------------------------ tensors

    def _run_batch(self, names: list[str], arrays: list[Any], bit_width: int | None,
                   config: DiffusionQuantConfig | None, context: Context | None,
                   report: Throttle | None, keep_going: bool, records: bool = False) -> list[Any]:
        settings = self._effective(config)
        if bit_width is not None:
            settings = settings.copy(bit_width=bit_width)
        made = _core.quantize_batch(
            names, arrays, settings.bit_width, settings.group_size,
            symmetric=settings.symmetric, parameter_bits=settings.parameter_bits,
            num_threads=settings.num_threads, context=context, progress=report,
            keep_going=keep_going, records=records,
            trellis_states=settings.trellis_states if settings.method == "trellis" else 0)
        if report:
            report.finish()
        return made

    def quantize(self, weights: Weights, bit_width: int | None = None, *,
                 config: DiffusionQuantConfig | None = None,
                 context: Context | None = None) -> dict[str, QuantizedTensor]:
        """Quantizes tensors in memory: a LoRA, a ControlNet, one layer.

        Args:
            weights: names to anything that holds floats: NumPy, torch, JAX, pyarrow and polars
                arrays, memoryviews, (nested) lists. Memory that is plain is read where it is.
            bit_width: 2, 4 or 8, 2 to 4 with method="trellis"; the config's when it is not given.
            config: group_size, symmetric, parameter_bits and num_threads are used; with method="trellis"
                trellis_states too, for tensors of 12 rows and more. Any other method is least
                squares here, where there are no statistics.
            context: lets another thread cancel the call.

        Returns:
            Names to QuantizedTensor.

        Raises:
            ConfigurationError: a bit width or group size that there is not.
            QuantizationError: weights that are not finite.
            TypeError: something that is no array of floats.
            ValueError: ragged lists, or nulls.
        """
        names, arrays = _split(weights)
        return dict(zip(names, self._run_batch(names, arrays, bit_width, config, context, None,
                                               False)))

    def quantize_batch(self, weights_dict: Weights, bit_width: int | None = None,
                       continue_on_error: bool = False, *,
                       config: DiffusionQuantConfig | None = None,
                       context: Context | None = None) -> BatchResult:
        """Quantizes many tensors on all cores.

        Args:
            weights_dict: as in quantize.
            bit_width: as in quantize.
            continue_on_error: a layer that fails is left out, with a RuntimeWarning, and its
                exception is in ``errors`` of the result.
            config: as in quantize.
            context: lets another thread cancel the call.

        Returns:
            Names to dicts of quantized_data (packed codes), scales, zero_points, shape, bit_width,
            group_size and tensor (the QuantizedTensor). The arrays share its memory.

        Raises:
            ArrowQuantError: as quantize, without continue_on_error.
        """
        return self._batch(weights_dict, bit_width, None, continue_on_error, config, context)

    def quantize_batch_with_progress(self, weights_dict: Weights, bit_width: int | None = None,
                                     progress_callback: ProgressCallback | None = None,
                                     continue_on_error: bool = False, *,
                                     config: DiffusionQuantConfig | None = None,
                                     context: Context | None = None) -> BatchResult:
        """quantize_batch that tells how far it is.

        Args:
            weights_dict: as in quantize_batch, and so the rest.
            bit_width: see there.
            progress_callback: as in quantize_diffusion_model.
            continue_on_error: see there.
            config: see there.
            context: see there.

        Returns:
            As quantize_batch.

        Raises:
            ArrowQuantError: as quantize_batch.
        """
        return self._batch(weights_dict, bit_width, progress_callback, continue_on_error, config,
                           context)

    def _batch(self, weights: Weights, bit_width: int | None, callback: ProgressCallback | None,
               keep_going: bool, config: DiffusionQuantConfig | None,
               context: Context | None) -> BatchResult:
        report = Throttle(callback) if callback is not None else None
        names, arrays = _split(weights)
        result = BatchResult()
        for name, item in zip(names, self._run_batch(names, arrays, bit_width, config, context,
                                                     report, keep_going, True)):
            if isinstance(item, Exception):
                result.errors[name] = item
            else:
                result[name] = _record(*item)
        _warn(result.errors, len(names))
        return result

    # ------------------------------------------------------------ Arrow

    def quantize_arrow(self, table: Any, bit_width: int | None = None, *,
                       config: DiffusionQuantConfig | None = None,
                       context: Context | None = None) -> Any:
        """Quantizes the layers of an Arrow table; the weights are read where they are.

        Args:
            table: pyarrow, polars, or anything with Arrow capsules, with the columns layer_name
                (string), weights (list of float32, float16 or float64) and, optionally, shape (list of
                int64).
            bit_width: as in quantize.
            config: as in quantize.
            context: lets another thread cancel the call.

        Returns:
            A table of layer_name, quantized_data, scales, zero_points, shape, bit_width and more
            (docs/FORMATS.md): a pyarrow.Table or RecordBatch for those of pyarrow, else a
            LayerTable, which has Arrow capsules.

        Raises:
            ConfigurationError: method="trellis", for which a table has no columns.
            QuantizationError: a column is missing or malformed, or weights are not finite.
            ShapeMismatchError: a shape does not fit its weights.
            TypeError: the object has no Arrow capsules.
        """
        return self._arrow(table, bit_width, False, config, context)

    def quantize_arrow_batch(self, record_batch: Any, bit_width: int | None = None,
                             continue_on_error: bool = False, *,
                             config: DiffusionQuantConfig | None = None,
                             context: Context | None = None) -> Any:
        """Quantizes the layers of a record batch.

        Args:
            record_batch: as the table of quantize_arrow.
            bit_width: as in quantize.
            continue_on_error: layers that fail are left out, with a RuntimeWarning.
            config: as in quantize.
            context: lets another thread cancel the call.

        Returns:
            As quantize_arrow.

        Raises:
            ArrowQuantError: as quantize_arrow.
        """
        return self._arrow(record_batch, bit_width, continue_on_error, config, context)

    def _arrow(self, table: Any, bit_width: int | None, keep_going: bool,
               config: DiffusionQuantConfig | None, context: Context | None) -> Any:
        if config is not None and config.method == "trellis":
            raise ConfigurationError("method: an Arrow table has no columns for trellis codes; use "
                                     "quantize or quantize_batch")
        rows = _core.arrow_weights(table)
        layers = _arrow.LayerTable([], [], {})
        for (name, _), item in zip(rows, self._run_batch(
                [name for name, _ in rows], [array for _, array in rows], bit_width, config,
                context, None, keep_going)):
            if isinstance(item, Exception):
                layers.errors[name] = item
            else:
                layers.names.append(name)
                layers.tensors.append(item)
        _warn(layers.errors, len(rows))
        return _arrow.like(table, layers)

    # ------------------------------------------------------------ is it all right here?

    def simple_test(self) -> bool:
        """Quantizes a small tensor at each bit width and compares the values that come back.

        Returns:
            True when every width is as accurate as it must be.
        """
        ramp = [[((7 * i + 3 * j) % 64 - 31.5) / 32 for j in range(128)] for i in range(4)]
        least = {2: 0.9, 4: 0.99, 8: 0.9999}
        return all(self.quantize({"ramp": ramp}, bits)["ramp"].cosine_similarity >= cosine
                   for bits, cosine in least.items())

    def test_method(self) -> str:
        """Name, version and instruction set in use, such as ``"arrowquant 0.1.0 avx2"``."""
        return f"arrowquant {_core.version} {Context().isa}"


def _split(weights: Weights) -> tuple[list[str], list[Any]]:
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a mapping of names to arrays, found {type(weights)!r}")
    return list(weights.keys()), list(weights.values())


def _warn(errors: dict[str, Exception], count: int) -> None:
    if errors:
        first = next(iter(errors.values()))
        warnings.warn(f"{len(errors)} of {count} layers failed, the first with: {first}",
                      RuntimeWarning, stacklevel=4)


def _record(tensor: QuantizedTensor, scales: Array, zero_points: Array) -> dict[str, Any]:
    """A tensor as the dict of the batch calls."""
    return {"quantized_data": tensor.quantized_data, "scales": scales,
            "zero_points": zero_points, "shape": list(tensor.shape),
            "bit_width": tensor.bit_width, "group_size": tensor.group_size, "tensor": tensor}


# ---------------------------------------------------------------- functions of the module

def quantize_diffusion_model(model_path: Path, output_path: Path,
                             config: DiffusionQuantConfig | None = None,
                             progress_callback: ProgressCallback | None = None, *,
                             executor: _executor.Executor | None = None,
                             context: Context | None = None) -> dict[str, Any]:
    """ArrowQuantV2().quantize_diffusion_model.

    Args:
        model_path: of the model.
        output_path: of the result.
        config: the settings.
        progress_callback: called with a number from 0 to 1 and a message.
        executor: makes the shards.
        context: lets another thread cancel the call.

    Returns:
        See ArrowQuantV2.quantize_diffusion_model.

    Raises:
        ArrowQuantError: see there.
    """
    return ArrowQuantV2().quantize_diffusion_model(model_path, output_path, config,
                                                   progress_callback, executor=executor,
                                                   context=context)


def validate_quality(original_path: Path, quantized_path: Path,
                     config: DiffusionQuantConfig | None = None,
                     progress_callback: ProgressCallback | None = None, *,
                     context: Context | None = None) -> dict[str, Any]:
    """ArrowQuantV2().validate_quality.

    Args:
        original_path: of the model that was quantized.
        quantized_path: of the result.
        config: the gates.
        progress_callback: called with a number from 0 to 1 and a message.
        context: lets another thread cancel the call.

    Returns:
        See ArrowQuantV2.validate_quality.

    Raises:
        ArrowQuantError: see there.
    """
    return ArrowQuantV2().validate_quality(original_path, quantized_path, config, progress_callback,
                                           context=context)


def compare_models(first_path: Path, second_path: Path,
                   progress_callback: ProgressCallback | None = None, *,
                   context: Context | None = None) -> dict[str, Any]:
    """Compares all float tensors that two models have in common.

    Args:
        first_path: of one model, quantized or not.
        second_path: of the other.
        progress_callback: called with a number from 0 to 1 and a message.
        context: lets another thread cancel the call.

    Returns:
        As validate_quality; only_in_first and only_in_second list what the other lacks.

    Raises:
        ShapeMismatchError: a name has two shapes.
    """
    report = Throttle(progress_callback) if progress_callback is not None else None
    result: dict[str, Any] = json.loads(
        _core.compare(first_path, second_path, None, context, report))
    if report:
        report.finish()
    return result


def dequantize_model(quantized_path: Path, output_path: Path, dtype: str = "bfloat16",
                     overwrite: bool = False, progress_callback: ProgressCallback | None = None, *,
                     context: Context | None = None) -> None:
    """Writes a quantized model as plain safetensors, for any other program.

    Args:
        quantized_path: of the quantized model.
        output_path: of the result.
        dtype: float32, float16 or bfloat16.
        overwrite: replace a model that exists there.
        progress_callback: called with a number from 0 to 1 and a message.
        context: lets another thread cancel the call.

    Raises:
        MetadataError: the model is not quantized, or malformed.
    """
    report = Throttle(progress_callback) if progress_callback is not None else None
    _core.dequantize_model(quantized_path, output_path, dtype, overwrite, context, report)
    if report:
        report.finish()


