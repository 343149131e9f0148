"""Tables of weights in, tables of quantized layers out, through Arrow capsules."""

from __future__ import annotations

import importlib
from typing import Any

from . import _core
from ._core import QuantizedTensor


class LayerTable:
    """Quantized layers as an Arrow record batch, for any program that takes Arrow capsules.

    The codes are exported where they are when there is one layer; those of several are gathered.
    Columns: layer_name, quantized_data (binary), scales, zero_points, shape, bit_width,
    group_size, mins, method, dtype, cosine_similarity, sqnr_db and more, see docs/FORMATS.md.

    Attributes:
        names: of the layers.
        tensors: a QuantizedTensor each.
        errors: {name: exception} of the layers that failed and were left out.
    """

    def __init__(self, names: list[str], tensors: list[QuantizedTensor],
                 errors: dict[str, Exception]) -> None:
        self.names = names
        self.tensors = tensors
        self.errors = errors

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<arrowquant.LayerTable of {len(self)} layers>"

    def __arrow_c_array__(self, requested_schema: object = None
                          ) -> tuple[object, object]:
        """The record batch as a pair of capsules."""
        return _core.arrow_layers(self.names, self.tensors)

    def __arrow_c_schema__(self) -> object:
        """Its schema."""
        return _core.arrow_layers([], [])[0]


def like(table: Any, layers: LayerTable) -> Any:
    """pyarrow's users get pyarrow's objects; all others the capsules."""
    if type(table).__module__.partition(".")[0] != "pyarrow":
        return layers
    pyarrow = importlib.import_module("pyarrow")
    batch = pyarrow.record_batch(layers)
    if isinstance(table, pyarrow.RecordBatch):
        return batch
    return pyarrow.Table.from_batches([batch])
