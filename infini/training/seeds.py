"""A version's step, trained with every seed, and written down once all are done."""

from collections.abc import Callable
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from infini import processes
from infini.console.stopwatch import Stopwatch
from infini.paths import TRAINING, model_folder, write_json
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit


class Job(NamedTuple):
    """One training of many."""

    title: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return self.title.replace(" ", "-")


class Trained(NamedTuple):
    """A trained model, and how it came about."""

    model: PreTrainedModel
    fit: Fit
    train_size: int
    val_size: int
    checkpoint: Checkpoint


def train_seeds(version: str, step: str, seeds: list[int], train: Callable[[Job], Trained]) -> None:
    """Train a version's step with each seed.

    Writes the models, `data/training/<version>/<step>.json` (by seed) and `.csv` (with a column
    seed). The checkpoints stay until the last is done: a killed stage goes on with its seed.
    """
    watch = Stopwatch(f"{version}-{step}")
    summaries: dict[str, dict[str, Any]] = {}
    curves: list[pd.DataFrame] = []
    seconds: list[float] = []
    checkpoints: list[Checkpoint] = []
    for seed in seeds:
        model, fit, train_size, val_size, checkpoint = train(
            Job(f"{version} {step} seed {seed}", seed)
        )
        if processes.is_main():
            model.save_pretrained(model_folder(version, step, seed))
        del model  # one base at a time
        summaries[str(seed)] = fit.summary(train_size, val_size)
        curves.append(fit.table().assign(seed=seed))
        seconds.append(fit.seconds_per_epoch)
        checkpoints.append(checkpoint)
    if not processes.is_main():
        return
    file = TRAINING / version / f"{step}.json"
    write_json(file, summaries)
    pd.concat(curves).to_csv(file.with_suffix(".csv"), index=False)
    watch.write(seconds_per_epoch=round(mean(seconds), 2))
    for checkpoint in checkpoints:
        checkpoint.remove()
