"""ArrowQuant: quantizes diffusion models to INT2, INT4 and INT8, and proves how good the result is.

>>> from arrowquant import ArrowQuantV2, DiffusionQuantConfig
>>> quantizer = ArrowQuantV2()
>>> quantizer.quantize({"layer": [[0.5, -1.0, 0.25, 0.75]] * 8}, bit_width=8)["layer"].shape
(8, 4)
"""

from . import progress
from ._arrow import LayerTable
from ._async import AsyncArrowQuantV2
from ._config import DiffusionQuantConfig
from ._core import Array, Context, Observer, QuantizedTensor
from ._core import version as __version__
from ._errors import (
    ArrowQuantError,
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    QuantizationError,
    ShapeMismatchError,
    ValidationError,
)
from ._model import Model, inspect, load_model
from ._quantizer import (
    ArrowQuantV2,
    BatchResult,
    compare_models,
    dequantize_model,
    quantize_diffusion_model,
    validate_quality,
)
from .progress import TqdmProgress

open = load_model

__all__ = [
    "Array",
    "ArrowQuantError",
    "ArrowQuantV2",
    "AsyncArrowQuantV2",
    "BatchResult",
    "ConfigurationError",
    "Context",
    "DiffusionQuantConfig",
    "LayerTable",
    "MetadataError",
    "Model",
    "ModelNotFoundError",
    "Observer",
    "QuantizationError",
    "QuantizedTensor",
    "ShapeMismatchError",
    "TqdmProgress",
    "ValidationError",
    "__version__",
    "compare_models",
    "dequantize_model",
    "inspect",
    "load_model",
    "progress",
    "quantize_diffusion_model",
    "validate_quality",
]
