"""The exceptions, and which of them each status of the library becomes."""

from __future__ import annotations


class ArrowQuantError(Exception):
    """What the six exceptions have in common.

    Attributes:
        status: the library's name for what went wrong, such as ``"bit_width"``.
        tensor: the tensor it went wrong with, or ``None``.
        hint: what to do about it.
        offset: byte offset in the file, or index of the element in the tensor, where it means one.
    """

    status: str = ""
    tensor: str | None = None
    hint: str = ""
    offset: int = 0


class QuantizationError(ArrowQuantError):
    """Quantizing failed: weights that are not finite, a layer below a gate, a file, cancellation."""


class ConfigurationError(ArrowQuantError, ValueError):
    """A configuration has a field that is out of range, unknown or not supported."""


class ValidationError(ArrowQuantError):
    """Quality is below what was asked for."""


class ModelNotFoundError(ArrowQuantError, FileNotFoundError):
    """There is no model at the path."""


class MetadataError(ArrowQuantError):
    """A model's files are malformed, or do not tell what is asked of them."""


class ShapeMismatchError(ArrowQuantError, ValueError):
    """Shapes do not agree."""


_CLASSES: dict[str, type[ArrowQuantError]] = {
    "bit_width": ConfigurationError,
    "time_groups": ConfigurationError,
    "group_size": ConfigurationError,
    "accuracy": ConfigurationError,
    "configuration": ConfigurationError,
    "unsupported": ConfigurationError,
    "argument": ConfigurationError,
    "unknown_modality": MetadataError,
    "model_not_found": ModelNotFoundError,
    "metadata": MetadataError,
    "corrupt": MetadataError,
    "validation": ValidationError,
    "shape": ShapeMismatchError,
}


def make(status: str, message: str, hint: str, tensor: str, offset: int) -> Exception:
    """The exception for an error of the library; called from C."""
    if status == "out_of_memory":
        return MemoryError(f"{message} ({hint})" if hint else message)
    made = _CLASSES.get(status, QuantizationError)(f"{message} ({hint})" if hint else message)
    made.status = status
    made.tensor = tensor or None
    made.hint = hint
    made.offset = offset
    return made
