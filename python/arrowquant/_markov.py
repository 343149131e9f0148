"""How smoothly activation parameters follow each other from one group of timesteps to the next."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from . import _core
from ._config import DiffusionQuantConfig


def total_timesteps(model_path: str | os.PathLike[str]) -> int:
    """The scheduler's num_train_timesteps, or 1000."""
    for folder in (pathlib.Path(model_path), pathlib.Path(model_path).parent):
        try:
            text = (folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8")
            return int(json.loads(text)["num_train_timesteps"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 1000


def metrics(config: DiffusionQuantConfig, model_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Of the 8-bit activation parameters that the config's calibration files give."""
    rows = _core.markov_metrics(
        list(config.calibration), config.calibration_samples, config.num_time_groups,
        total_timesteps(model_path), config.thermodynamic_validation_smoothness_threshold)
    boundaries = max((len(scores) for _, _, scores, _ in rows), default=0)
    means = []
    for i in range(boundaries):
        found = [scores[i] for _, _, scores, _ in rows if i < len(scores)]
        means.append(sum(found) / len(found))
    violations = [violation for _, _, _, found in rows for violation in found]
    return {"smoothness_score": sum(score for _, score, _, _ in rows) / len(rows) if rows else 1.0,
            "violation_count": len(violations), "is_valid": not violations,
            "boundary_scores": means, "violations": violations,
            "layers": {name: score for name, score, _, _ in rows}}
