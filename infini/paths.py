"""Where every stage's files are."""

import json
from pathlib import Path
from typing import Any

from infini.errors import InputError

INPUTS = Path("data/inputs")
SAMPLES, DOCUMENTS = Path("data/prepared/samples"), Path("data/prepared/documents")
SUMMARY = Path("data/prepared/summary.json")
MODELS, TRAINING = Path("data/models"), Path("data/training")
EVALUATION = Path("data/evaluation")
TIMES = Path("data/times")  # of the last run of each stage here; not in Git
REPORTS = Path("reports")
METRICS, AUDITS, COSTS = REPORTS / "metrics", REPORTS / "audits", REPORTS / "costs.csv"
AUDITS_LOCK = Path("audits/dvc.lock")
PLOTS, PAGE = REPORTS / "plots", REPORTS / "index.html"


def model_folder(version: str, step: str, seed: int) -> Path:
    """Where the model of a version's step, `distill` or `finetune`, is."""
    return MODELS / version / step / f"seed{seed}"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """One JSON file, its folder made if need be; InputError for a number that is not finite."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InputError(f"{file}: a figure is not finite, nothing is written") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    content: dict[str, Any] = json.loads(file.read_text())
    return content
