"""Where results live, and how they are written: data for every table and plot."""

import json
import logging
import platform
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from infini import surgery
from infini.training import Fit

log = logging.getLogger(__name__)

SAMPLES, DOCUMENTS = Path("data/prepared/samples"), Path("data/prepared/documents")
MODELS, TRAINING = Path("data/models"), Path("data/training")
METRICS, TIMES = Path("reports/metrics"), Path("reports/times")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """One JSON file, its folder made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    content: dict[str, Any] = json.loads(file.read_text())
    return content


class Stopwatch:
    """Wall time of a stage, in a file of its own that nothing depends on."""

    def __init__(self, name: str):
        self.name = name
        self.start = time.perf_counter()

    def write(self, **more: float) -> None:
        """Seconds since the start, and on what."""
        seconds = round(time.perf_counter() - self.start, 1)
        log.info("%s: %.1f s", self.name, seconds)
        content = {"seconds": seconds, **more, "threads": torch.get_num_threads()}
        write_json(TIMES / f"{self.name}.json", content | {"machine": platform.machine()})


def save_training(
    version: str, step: str, model: PreTrainedModel, result: Fit, train: int, val: int
) -> None:
    """A training's model, curve and summary."""
    surgery.save(model, MODELS / version / step)
    summary: dict[str, Any] = {
        "train_size": train,
        "val_size": val,
        "epochs": len(result.curve),
        "best_epoch": result.best_epoch,
        "stopped_early": int(result.stopped_early),
        "train_loss": result.best["train_loss"],
    }
    if val:
        summary["val_loss"] = result.best["val_loss"]
    write_json(TRAINING / version / f"{step}.json", summary)
    result.table().to_csv(TRAINING / version / f"{step}.csv", index=False)
