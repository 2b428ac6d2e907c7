"""What a version's training left behind, checked before anything is measured."""

import math
from pathlib import Path
from typing import Any

from infini.errors import InputError
from infini.evaluation.estimates import Metrics, rounded
from infini.files import read_json
from infini.paths import TRAINING


def seeds_of(version: str) -> list[int]:
    """Those that a version was trained with. InputError where its record tells of none."""
    file = TRAINING / version / "finetune.json"
    found = read_json(file)
    if not found or not all(seed.isascii() and seed.isdigit() for seed in found):
        raise InputError(f"{file}: figures by seed are needed; run the stage that writes it")
    return [int(seed) for seed in found]


def figures_of(version: str, step: str, seed: int) -> Metrics:
    """A training's own figures. InputError where one is no finite number."""
    file = TRAINING / version / f"{step}.json"
    found: Any = read_json(file, str(seed))[str(seed)]
    if not isinstance(found, dict):
        raise InputError(f"{file}: {seed}: figures by name are needed, it holds {found!r:.40}")
    for name, value in found.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{file}: {seed}: {name} is no finite number: {value!r:.40}")
    return {name: rounded(value) for name, value in found.items()}


def check_settings(folder: Path, options: dict[str, Any]) -> None:
    """InputError where the model in a folder is not what params.yaml says of the version.

    options: what the version gives to `infini.retrofit`.
    """
    file = folder / "infini_config.json"
    settings = read_json(file)
    for name, value in options.items():
        if value is not None and name in settings and settings[name] != value:
            raise InputError(
                f"{file}: {name} is {settings[name]!r}, of the version {value!r}: run its "
                "training again"
            )
