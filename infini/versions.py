"""A version's step, trained with every seed, and written down once all are done."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from infini import engine
from infini.checkpoint import Checkpoint
from infini.record import TRAINING, Stopwatch, model_folder, write_json
from infini.training import Fit


class Trained(NamedTuple):
    """A trained model, and how it came about."""

    model: PreTrainedModel
    fit: Fit
    train_size: int
    val_size: int
    checkpoint: Checkpoint


def train_seeds(
    version: str, step: str, seeds: list[int], train: Callable[[int, str], Trained]
) -> None:
    """Train a version's step with each seed; train(seed, title) does.

    Writes the models, `data/training/<version>/<step>.json` (by seed) and `.csv` (with a column
    seed). The checkpoints stay until the last is done: a killed stage goes on with its seed.
    """
    watch = Stopwatch(f"{version}-{step}")
    done: dict[int, Trained] = {}
    for seed in seeds:
        done[seed] = train(seed, f"{version} {step} seed {seed}")
        if engine.is_main():
            done[seed].model.save_pretrained(model_folder(version, step, seed))
    if not engine.is_main():
        return
    file = TRAINING / version / f"{step}.json"
    write_json(file, {str(s): t.fit.summary(t.train_size, t.val_size) for s, t in done.items()})
    curves = [trained.fit.table().assign(seed=seed) for seed, trained in done.items()]
    pd.concat(curves).to_csv(file.with_suffix(".csv"), index=False)
    seconds = sum(trained.fit.seconds_per_epoch for trained in done.values()) / len(done)
    watch.write(seconds_per_epoch=round(seconds, 2))
    for trained in done.values():
        trained.checkpoint.remove()
