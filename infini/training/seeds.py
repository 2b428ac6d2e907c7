"""Training of a version's step with every seed, and its records."""

import math
from collections.abc import Callable
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from infini import processes
from infini.console.stopwatch import Stopwatch
from infini.evaluation.rounding import write_metrics, write_rounded_csv
from infini.paths import Version
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit


class TrainingRun(NamedTuple):
    """One training: a step of a version with a seed."""

    version: Version
    step: str

    @property
    def seed(self) -> int:
        """Seed of weights and batches."""
        return self.version.seed

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.version.name} {self.step} seed {self.seed}"

    @property
    def checkpoint_name(self) -> str:
        """Name of its checkpoints."""
        return self.version.checkpoint_name(self.step)


class TrainingResult(NamedTuple):
    """A trained model and the course of its training."""

    model: PreTrainedModel
    fit: Fit
    train_size: int
    val_size: int
    checkpoint: Checkpoint


def train_seeds(
    name: str, step: str, seeds: list[int], train: Callable[[TrainingRun], TrainingResult]
) -> None:
    """Train a version's step with each seed; write models, record and loss curve.

    Checkpoints stay until the last seed is done: a killed stage continues with its seed.

    Args:
        name: The version's name.
        step: `distill`, `finetune` or `control`.
        seeds: May be empty: record and curve then hold nothing.
        train: Trains with one seed.
    """
    watch = Stopwatch(f"{name}-{step}")
    records: dict[str, dict[str, Any]] = {}
    curves: list[pd.DataFrame] = []
    seconds: list[float] = []
    checkpoints: list[Checkpoint] = []
    for seed in seeds:
        run = TrainingRun(Version(name, seed), step)
        model, fit, train_size, val_size, checkpoint = train(run)
        # Called in all processes, as each has a part of a sharded base; the main one writes
        folder = run.version.model_folder(step)
        model.save_pretrained(folder, is_main_process=processes.is_main())
        del model  # or two bases were in memory
        records[str(seed)] = record = fit.summary(train_size, val_size)
        if val_size and step != "distill":
            record["val_ppl"] = math.exp(min(80.0, record["val_loss"]))
        curves.append(fit.table().assign(seed=seed))
        seconds.append(fit.seconds_per_epoch)
        checkpoints.append(checkpoint)
    if not processes.is_main():
        return
    _write_records(Version(name), step, records, curves)
    watch.write(**({"seconds_per_epoch": round(mean(seconds), 2)} if seconds else {}))
    for checkpoint in checkpoints:
        checkpoint.remove()


def save_untrained(
    name: str, step: str, seeds: list[int], build: Callable[[int], PreTrainedModel]
) -> None:
    """Write the models that `build` returns for each seed, as a step without training."""
    for seed in seeds:
        build(seed).save_pretrained(Version(name, seed).model_folder(step))
    _write_records(Version(name), step, {str(seed): {} for seed in seeds}, [])


def _write_records(
    version: Version, step: str, records: dict[str, dict[str, Any]], curves: list[pd.DataFrame]
) -> None:
    version.step_folder(step).mkdir(parents=True, exist_ok=True)
    write_metrics(version.training_record(step), records)
    empty = pd.DataFrame(columns=["epoch", "train_loss", "val_loss", "seed"])
    table = pd.concat(curves) if curves else empty
    write_rounded_csv(version.training_curve(step), table, ["epoch", "seed"])
