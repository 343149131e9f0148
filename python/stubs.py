#!/usr/bin/env python3
"""Writes python/arrowquant/_config.pyi from the table of fields in docs/CONFIG.md, which is itself made
from src/config/fields.h. `python/stubs.py --check` only says whether it is up to date."""
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
TARGET = TOP / "python/arrowquant/_config.pyi"
# The order in which ArrowQuant V2 takes them without keywords.
POSITIONAL = ["bit_width", "modality", "num_time_groups", "group_size", "enable_time_aware",
              "enable_spatial", "min_accuracy", "calibration_samples", "deployment_profile"]
TYPES = {"boolean": "bool", "integer": "int", "number": "float", "choice": "str",
         "text": "str | None", "list": "list[str]", "map": "dict[str, int]"}
WIDER = {"list[str]": "Sequence[str]", "dict[str, int]": "Mapping[str, int]"}

HEAD = """\
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self, overload

from . import _core

class DiffusionQuantConfig(_core.Config):
    def __init__(
        self,
"""
METHODS = """\
    ) -> None: ...
    @classmethod
    def from_profile(cls, profile: str) -> Self: ...
    @classmethod
    def from_yaml(cls, path: str | PathLike[str]) -> Self: ...
    @overload
    def to_yaml(self, path: None = None) -> str: ...
    @overload
    def to_yaml(self, path: str | PathLike[str]) -> None: ...
    def copy(self, **changes: Any) -> Self: ...
    def to_dict(self) -> dict[str, Any]: ...
    def _state(self) -> dict[str, str]: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Self: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
"""


def fields():
    """[(name, type)] in the order of the table."""
    rows = re.findall(r"^\| `([\w.]+)` \| (\w+) \| ([^|]*)\|",
                      (TOP / "docs/CONFIG.md").read_text(encoding="utf-8"), re.M)
    return [(path.replace(".", "_"),
             TYPES[kind] + (" | None" if kind == "number" and "null" in values else ""))
            for path, kind, values in rows]


def stub():
    known = dict(fields())
    text = HEAD
    for name in POSITIONAL:
        text += f"        {name}: {known[name]} | None = None,\n"
    text += "        *,\n"
    for name, kind in known.items():
        if name not in POSITIONAL:
            text += f"        {name}: {WIDER.get(kind, kind)} = ...,\n"
    text += METHODS
    for name, kind in known.items():
        taken = WIDER.get(kind, kind) + (" | None" if name == "modality" else "")
        text += (f"    @property\n    def {name}(self) -> {kind}: ...\n    @{name}.setter\n"
                 f"    def {name}(self, value: {taken}) -> None: ...\n")
    return text


def main():
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text(encoding="utf-8") == stub():
            return 0
        print("python/arrowquant/_config.pyi is stale: run python3 python/stubs.py")
        return 1
    TARGET.write_text(stub(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
