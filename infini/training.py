"""The one training loop.

Pretraining, distillation, finetuning and adapters differ in two things only:
a generator of losses and a validation function. Early stopping keeps the best
epoch's weights; a checkpoint after every epoch makes a killed run continue to
the same bits (the data order is a function of seed and epoch).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from infini.checkpoint import Checkpoint
from infini.errors import InputError
from infini.progress import on_terminal
from infini.record import write_json

log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """What one backward pass needs."""

    value: Tensor  # mean over `items` scored tokens or samples
    items: int
    weight: float = 1.0  # of its gradient, where several make one step
    step: bool = True  # take an optimizer step after this one


@dataclass
class Fit:
    """The result of a training: one curve row an epoch, and where it ended."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False
    seconds: float = 0.0

    @property
    def best(self) -> dict[str, float]:
        """The curve's row of the weights that were kept."""
        return self.curve[self.best_epoch - 1]

    @property
    def seconds_per_epoch(self) -> float:
        """Wall time of an epoch, its validation included."""
        return round(self.seconds / len(self.curve), 2)

    def table(self) -> pd.DataFrame:
        """Columns epoch, train_loss, val_loss (empty without validation)."""
        return pd.DataFrame(self.curve, columns=["epoch", "train_loss", "val_loss"])

    def write(self, file: Path, train: int, val: int) -> None:
        """The summary as `file`.json and the curve as `file`.csv; sizes of what was trained on."""
        summary: dict[str, Any] = {
            "train_size": train,
            "val_size": val,
            "epochs": len(self.curve),
            "best_epoch": self.best_epoch,
            "stopped_early": int(self.stopped_early),
            "train_loss": self.best["train_loss"],
        }
        if val:
            summary["val_loss"] = self.best["val_loss"]
        write_json(file.with_suffix(".json"), summary)
        self.table().to_csv(file.with_suffix(".csv"), index=False)


def adamw(trained: dict[str, nn.Parameter], lr: float, gate_lr: float) -> Optimizer:
    """AdamW; α and the gates β at their own rate and without decay, or they never move."""
    gates = [p for name, p in trained.items() if name.endswith((".alpha", ".beta"))]
    weights = [p for name, p in trained.items() if not name.endswith((".alpha", ".beta"))]
    return torch.optim.AdamW(
        [{"params": weights, "lr": lr}, {"params": gates, "lr": gate_lr, "weight_decay": 0.0}],
        fused=True,
    )


def fit(
    trained: dict[str, nn.Parameter],
    optimizers: list[Optimizer],
    losses: Callable[[int], Iterator[Loss]],
    *,
    steps: list[int],
    checkpoint: Checkpoint,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    title: str = "training",
) -> Fit:
    """Train `trained` (name → parameter) in place.

    losses(epoch) yields the epoch's losses one by one; each is backpropagated before
    the next is asked for. steps: optimizer steps of each epoch. validate() gives the
    validation loss; without it the last epoch is kept. patience: epochs without a better
    validation loss before stopping.
    schedule(step) multiplies every learning rate. clip: maximum gradient norm.
    """
    result = Fit()
    best: dict[str, Tensor] = {name: t.detach().clone() for name, t in trained.items()}
    # The checkpoint holds the weights as they are and as they were at their best.
    stored: dict[str, Tensor] = {**trained} | {f"best.{name}": t for name, t in best.items()}
    if record := checkpoint.load(stored, optimizers):
        result = Fit(**record)
        log.info("%s: goes on after epoch %d", title, len(result.curve))
    epochs = len(steps)
    base_lrs = [[group["lr"] for group in o.param_groups] for o in optimizers]
    parameters = list(trained.values())

    bar = tqdm(
        total=sum(steps),
        initial=sum(steps[: len(result.curve)]),
        desc=title,
        unit="step",
        disable=not on_terminal(),
    )
    while len(result.curve) < epochs and not result.stopped_early:
        epoch = len(result.curve) + 1
        step, started = sum(steps[: epoch - 1]), time.perf_counter()
        total, count = 0.0, 0
        for loss in losses(epoch):
            if not torch.isfinite(loss.value):
                raise InputError(
                    f"{title}: the loss is {loss.value.item()} in epoch {epoch}, step {step}: "
                    "lower the learning rate"
                )
            (loss.value * loss.weight).backward()
            total, count = total + loss.value.item() * loss.items, count + loss.items
            if not loss.step:
                continue
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * (schedule(step) if schedule else 1.0)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            bar.update()

        val_loss = validate() if validate else math.nan
        row = {"epoch": epoch, "train_loss": total / count, "val_loss": val_loss}
        better = not validate or not result.curve or val_loss < result.best["val_loss"]
        result.curve.append(row)
        if better:
            result.best_epoch = epoch
            for name, t in trained.items():
                best[name].copy_(t.detach())
        result.stopped_early = patience is not None and epoch - result.best_epoch >= patience
        bar.set_postfix(train=f"{row['train_loss']:.4g}", val=f"{val_loss:.4g}")
        if bar.disable:
            val = f" val={val_loss:.6g}{' *' if better else ''}" if validate else ""
            log.info("%s: epoch %d/%d train=%.6g%s", title, epoch, epochs, row["train_loss"], val)
        result.seconds += time.perf_counter() - started
        checkpoint.save(stored, optimizers, vars(result))
    bar.close()
    for name, t in trained.items():
        t.data.copy_(best[name])
    return result
