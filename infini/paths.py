"""Where every stage's files are."""

import json
import os
from pathlib import Path
from typing import Any

from infini.errors import InputError

INPUTS = Path("data/inputs")
SAMPLES, DOCUMENTS = Path("data/prepared/samples"), Path("data/prepared/documents")
SUMMARY = Path("data/prepared/summary.json")
TEACHER = Path("data/teacher/train.safetensors")
MODELS, TRAINING = Path("data/models"), Path("data/training")
EVALUATION = Path("data/evaluation")
CHECKPOINTS = Path(".checkpoints")  # of trainings that are not done; nobody's output
TIMES = Path("data/times")  # of the last run of each stage here; not in Git
REPORTS = Path("reports")
METRICS, AUDITS, COSTS = REPORTS / "metrics", REPORTS / "audits", REPORTS / "costs.csv"
NO_NUMBERS = ("text_id", "tokens", "protocol", "version")  # columns: words, or lists
AUDITS_LOCK = Path("audits/dvc.lock")
PLOTS, PAGE = REPORTS / "plots", REPORTS / "index.html"


def model_folder(version: str, step: str, seed: int) -> Path:
    """Where the model of a version's step, `distill` or `finetune`, is."""
    return MODELS / version / step / f"seed{seed}"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """One JSON file, whole or not at all; InputError for a number that is not finite."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InputError(f"{file}: a figure is not finite, nothing is written") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file, an object with these keys; InputError where it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; run the stage that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: a JSON object is needed, it holds a {type(content).__name__}")
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{file}: no {', '.join(missing)} in it; run the stage that writes it")
    return content


def read_yaml(file: Path) -> dict[str, Any]:
    """The content of a YAML file; empty where it is not there."""
    from ruamel.yaml import YAML  # the library alone has none

    return (YAML(typ="safe").load(file) or {}) if file.is_file() else {}


def read_table(file: Path, *columns: str) -> Any:
    """The pandas table in a Parquet or CSV file, which has these columns.

    InputError where it is missing, is no such table, or where one of them has other than finite
    numbers, but for words and lists.
    """
    import pandas as pd  # the library alone has none

    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file, page_checksum_verification=True)
        else:
            table = pd.read_csv(file)
    except FileNotFoundError:
        raise InputError(f"{file}: not found; run the stage that writes it") from None
    except Exception as error:  # of as many kinds as a file can be damaged in
        raise InputError(f"{file}: no readable table ({' '.join(str(error).split())})") from None
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{file}: no column {', '.join(missing)}; run the stage that writes it")
    for name in columns:
        if name not in NO_NUMBERS and not _finite(table[name]):
            raise InputError(f"{file}: {name} has values that are not finite numbers")
    return table


def _finite(column: Any) -> bool:
    """Whether a pandas column holds finite numbers alone, or nothing."""
    if column.empty:
        return True
    return column.dtype.kind in "iufb" and bool((column.abs() < float("inf")).all())
