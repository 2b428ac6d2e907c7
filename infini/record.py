"""Where results live, and how they are written: data for every table and plot."""

import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

SAMPLES, DOCUMENTS = Path("data/prepared/samples"), Path("data/prepared/documents")
SUMMARY = Path("data/prepared/summary.json")
MODELS, TRAINING = Path("data/models"), Path("data/training")
EVALUATION = Path("data/evaluation")
METRICS, TIMES = Path("reports/metrics"), Path("reports/times")
AUDITS, COSTS = Path("reports/audits"), Path("reports/costs.csv")


def model_folder(version: str, step: str, seed: int) -> Path:
    """Where the model of a version's step, `distill` or `finetune`, is."""
    return MODELS / version / step / f"seed{seed}"


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
        self.startup = time.time() - psutil.Process().create_time()  # imports, mostly

    def write(self, **more: float) -> None:
        """Seconds since the start, and on what."""
        seconds = round(time.perf_counter() - self.start, 1)
        log.info("%s: %.1f s", self.name, seconds)
        content = {
            "seconds": seconds,
            "startup": round(self.startup, 1),
            **more,
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
        }
        write_json(TIMES / f"{self.name}.json", content)
