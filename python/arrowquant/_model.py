"""Reading models back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Union

from . import _core
from ._core import Array, QuantizedTensor

Path = Union[str, "PathLike[str]"]


class Model(Mapping[str, Union[QuantizedTensor, Array]]):
    """An opened model: names to tensors, which are read when they are used.

    The files are mapped. A quantized tensor is a QuantizedTensor, a kept one an Array; both give
    their values through the buffer protocol, DLPack, Arrow, ``numpy()`` and ``dequantize()``. They
    stay valid after the model is closed.

    Args:
        path: a folder or file that this library wrote, or any plain safetensors model.

    Raises:
        ModelNotFoundError: there is no model.
        MetadataError: its files are malformed.
    """

    def __init__(self, path: Path) -> None:
        self._core = _core.Model(path)
        self._names = self._core.names()
        self._set = frozenset(self._names)

    def __getitem__(self, name: str) -> QuantizedTensor | Array:
        return self._core.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._set

    @property
    def path(self) -> str:
        """As it was opened."""
        return self._core.path

    @property
    def modality(self) -> str:
        """text, code, image, audio or unknown."""
        return self._core.modality

    @property
    def quantized(self) -> bool:
        """Whether this library wrote it."""
        return self._core.quantized

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return self._core.weight_bytes

    def describe(self, name: str) -> dict[str, Any]:
        """What the file says about a tensor, without reading it.

        Args:
            name: of the tensor.

        Returns:
            name, shape, dtype, bytes and file; of a quantized one bits, group_size, code, method,
            params, cosine_similarity and sqnr_db too.

        Raises:
            KeyError: there is none of that name.
        """
        return self._core.describe(name)

    def verify(self) -> int:
        """Compares every stored tensor with its checksum.

        Returns:
            How many had one.

        Raises:
            MetadataError: the first that differs.
        """
        return self._core.verify()

    def close(self) -> None:
        """Lets go of the files; tensors that are in use keep them."""
        self._core.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<arrowquant.Model {len(self)} tensors>"


def load_model(path: Path) -> Model:
    """Opens a model for reading.

    Args:
        path: a folder or file that this library wrote, or any plain safetensors model.

    Returns:
        A mapping of names to tensors.

    Raises:
        ModelNotFoundError: there is no model.
        MetadataError: its files are malformed.
    """
    return Model(path)


def inspect(path: Path, verify: bool = False) -> dict[str, Any]:
    """What a model holds, from its headers.

    Args:
        path: a model folder or file.
        verify: compare the checksums too, which reads everything.

    Returns:
        path, modality, quantized, weight_bytes, bits_per_weight (of the quantized tensors), verified
        (tensors checked, or ``None``), and tensors: a list of dicts, see Model.describe.

    Raises:
        ModelNotFoundError: there is no model.
        MetadataError: its files are malformed, or a checksum differs.
    """
    with Model(path) as model:
        tensors = [model.describe(name) for name in model]
        weights = stored = 0
        for tensor in tensors:
            if "bits" in tensor:
                count = 1
                for length in tensor["shape"]:
                    count *= length
                weights += count
                stored += tensor["bytes"]
        return {"path": model.path, "modality": model.modality, "quantized": model.quantized,
                "weight_bytes": model.weight_bytes,
                "bits_per_weight": 8 * stored / weights if weights else None,
                "verified": model.verify() if verify else None, "tensors": tensors}
