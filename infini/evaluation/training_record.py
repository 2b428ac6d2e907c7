"""Records of a version's training, checked before anything is measured."""

import math
from pathlib import Path
from typing import Any

from infini.errors import InputError
from infini.evaluation.estimates import Metrics, rounded
from infini.files import read_json
from infini.paths import Version


def trained_seeds(version: Version) -> list[int]:
    """Return the seeds that a version was trained with.

    Raises:
        InputError: If its record has none.
    """
    file = version.training_record("finetune")
    record = read_json(file)
    if not record or not all(seed.isascii() and seed.isdigit() for seed in record):
        raise InputError(f"{file}: must hold figures by seed; run the stage that writes it")
    return [int(seed) for seed in record]


def training_figures(version: Version, step: str) -> Metrics:
    """Return the figures of a step's training with the version's seed.

    Raises:
        InputError: If one is no finite number.
    """
    file, seed = version.training_record(step), str(version.seed)
    figures: Any = read_json(file, seed)[seed]
    if not isinstance(figures, dict):
        raise InputError(f"{file}: {seed}: must be figures by name, got {figures!r:.40}")
    for name, value in figures.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{file}: {seed}: {name} must be a finite number, got {value!r:.40}")
    return {name: rounded(value) for name, value in figures.items()}


def check_settings(folder: Path, options: dict[str, Any]) -> None:
    """Compare a saved model with the version in params.yaml.

    Args:
        folder: The model's folder.
        options: The version's arguments of `infini.retrofit`.

    Raises:
        InputError: If an option differs.
    """
    file = folder / "infini_config.json"
    settings = read_json(file)
    for name, value in options.items():
        if value is not None and name in settings and settings[name] != value:
            raise InputError(
                f"{file}: {name} is {settings[name]!r}, of the version {value!r}: run its "
                "training again"
            )
