"""A version's step, trained with every seed, and written down once all are done."""

from collections.abc import Callable
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from infini import processes
from infini.console.stopwatch import Stopwatch
from infini.files import write_json
from infini.paths import MODELS, TRAINING, Version
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit


class TrainingRun(NamedTuple):
    """One training of many."""

    title: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return self.title.replace(" ", "-")


class TrainingResult(NamedTuple):
    """A trained model, and how it came about."""

    model: PreTrainedModel
    fit: Fit
    train_size: int
    val_size: int
    checkpoint: Checkpoint


def train_seeds(
    version: str, step: str, seeds: list[int], train: Callable[[TrainingRun], TrainingResult]
) -> None:
    """Train a version's step with each seed; none: the files are there, and hold nothing.

    Writes the models, `reports/training/<version>/<step>.json` (by seed) and `.csv` (with a column
    seed). The checkpoints stay until the last is done: a killed stage goes on with its seed.
    """
    watch = Stopwatch(f"{version}-{step}")
    summaries: dict[str, dict[str, Any]] = {}
    curves: list[pd.DataFrame] = []
    seconds: list[float] = []
    checkpoints: list[Checkpoint] = []
    for seed in seeds:
        model, fit, train_size, val_size, checkpoint = train(
            TrainingRun(f"{version} {step} seed {seed}", seed)
        )
        if processes.is_main():
            model.save_pretrained(Version(version, seed).model_folder(step))
        del model  # one base at a time
        summaries[str(seed)] = fit.summary(train_size, val_size)
        curves.append(fit.table().assign(seed=seed))
        seconds.append(fit.seconds_per_epoch)
        checkpoints.append(checkpoint)
    if not processes.is_main():
        return
    _write(version, step, summaries, curves)
    watch.write(**({"seconds_per_epoch": round(mean(seconds), 2)} if seconds else {}))
    for checkpoint in checkpoints:
        checkpoint.remove()


def save_untrained(
    version: str, step: str, seeds: list[int], build: Callable[[int], PreTrainedModel]
) -> None:
    """A step that trains nothing: the model that `build` makes for each seed, and no figures."""
    for seed in seeds:
        build(seed).save_pretrained(Version(version, seed).model_folder(step))
    _write(version, step, {str(seed): {} for seed in seeds}, [])


def _write(
    version: str, step: str, summaries: dict[str, dict[str, Any]], curves: list[pd.DataFrame]
) -> None:
    (MODELS / version / step).mkdir(parents=True, exist_ok=True)
    file = TRAINING / version / f"{step}.json"
    write_json(file, summaries)
    nothing = pd.DataFrame(columns=["epoch", "train_loss", "val_loss", "seed"])
    table = pd.concat(curves) if curves else nothing
    table.to_csv(file.with_suffix(".csv"), index=False)
