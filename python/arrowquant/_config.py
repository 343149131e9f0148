"""DiffusionQuantConfig: its properties are made from the library's own table of fields."""

from __future__ import annotations

import json
import os
from typing import Any

from . import _core

_FIELDS = {path.replace(".", "_"): (path, doc) for path, _, _, doc in _core.config_fields()}


class DiffusionQuantConfig(_core.Config):
    """Every setting of a run.

    Each field is a keyword and a property; nested ones have underscores for dots
    (``thermodynamic_validation_enabled``). ``deployment_profile`` (edge, local or cloud) gives the
    defaults of all others, whatever the order of the keywords.

    Args:
        bit_width: bits of a weight, 2, 4 or 8; 3 with method="trellis".
        modality: text, code, image or audio; detected when it is not given.
        num_time_groups: groups of timesteps, 1 to 100.
        group_size: weights that share a scale, 32, 64, 128 or 256.
        enable_time_aware: keep activation statistics for each group of timesteps.
        enable_spatial: equalize channels by their activations.
        min_accuracy: least cosine similarity of each layer, 0 to 1.
        calibration_samples: most calibration samples that are used.
        deployment_profile: edge, local (the default) or cloud.
        **fields: any other field, see docs/CONFIG.md.

    Raises:
        ConfigurationError: a value is out of its range.
        TypeError: there is no such field.
    """

    def __init__(self, bit_width=None, modality=None, num_time_groups=None, group_size=None,
                 enable_time_aware=None, enable_spatial=None, min_accuracy=None,
                 calibration_samples=None, deployment_profile=None, **fields):
        if deployment_profile is not None:
            self.deployment_profile = deployment_profile
        given = {"bit_width": bit_width, "modality": modality, "num_time_groups": num_time_groups,
                 "group_size": group_size, "enable_time_aware": enable_time_aware,
                 "enable_spatial": enable_spatial, "min_accuracy": min_accuracy,
                 "calibration_samples": calibration_samples}
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        for name, value in fields.items():
            if name not in _FIELDS:
                raise TypeError(f"DiffusionQuantConfig() got an unexpected keyword argument {name!r}"
                                f"{_nearest(name)}")
            setattr(self, name, value)

    @classmethod
    def from_profile(cls, profile):
        """The defaults of a deployment profile.

        Args:
            profile: ``"edge"``, ``"local"`` or ``"cloud"``.

        Returns:
            A new config.

        Raises:
            ConfigurationError: there is no such profile.
        """
        return cls(deployment_profile=profile)

    @classmethod
    def from_yaml(cls, path):
        """Reads a YAML file.

        Args:
            path: of the file.

        Returns:
            A new config.

        Raises:
            ConfigurationError: naming line, field, what it may be and what was found.
            QuantizationError: the file cannot be read.
        """
        made = cls()
        made._load(path)
        return made

    def to_yaml(self, path=None):
        """Writes the config as commented YAML; loading it gives an equal config.

        Args:
            path: of the file, which is replaced; ``None``: only return the text.

        Returns:
            The YAML text without a path, else ``None``.

        Raises:
            ConfigurationError: the config is not valid.
            QuantizationError: the file cannot be written.
        """
        if path is None:
            return self._text()
        self._save(path)
        return None

    def copy(self, **changes):
        """A copy, with some fields changed.

        Args:
            **changes: fields and their new values.

        Returns:
            A new config.

        Raises:
            ConfigurationError: a value is out of its range.
        """
        made = _rebuild(type(self), self._state())
        for name, value in changes.items():
            if name not in _FIELDS:
                raise TypeError(f"there is no field {name!r}{_nearest(name)}")
            setattr(made, name, value)
        return made

    def to_dict(self):
        """All fields by name."""
        return {name: getattr(self, name) for name in _FIELDS}

    def _state(self):
        return {path: self._get(path) for path in self._explicit()}

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return _rebuild, (type(self), self._state())

    def __repr__(self):
        names = {path: name for name, (path, _) in _FIELDS.items()}
        shown = {"deployment_profile": self.deployment_profile}
        shown.update({names[path]: getattr(self, names[path]) for path in self._explicit()})
        return f"DiffusionQuantConfig({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def _rebuild(cls, state):
    made = cls()
    for path, value in sorted(state.items(), key=lambda item: item[0] != "deployment_profile"):
        made._set(path, value)
    return made


def _nearest(name):
    import difflib
    close = difflib.get_close_matches(name, _FIELDS, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    """NumPy numbers, paths, tuples and mappings as what JSON has."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value)
    return [_plain(item) for item in value]


def _property(path, doc):
    def get(self):
        return json.loads(self._get(path))

    def set_(self, value):
        self._set(path, json.dumps(_plain(value)))

    return property(get, set_, doc=doc)


for _name, (_path, _doc) in _FIELDS.items():
    setattr(DiffusionQuantConfig, _name, _property(_path, _doc))
