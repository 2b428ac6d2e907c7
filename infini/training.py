"""The one training loop.

Pretraining, distillation, finetuning and adapters differ in their batches, the losses of a
batch and a validation function. Early stopping keeps the best epoch's weights. A checkpoint
after every epoch and every few minutes makes a killed run continue to the same bits: the
batches are a function of seed and epoch, and nothing else is carried from one to the next.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infini import engine
from infini.checkpoint import Checkpoint
from infini.errors import InputError
from infini.live import LiveView
from infini.signals import Stopped, stop_requests

log = logging.getLogger(__name__)

B = TypeVar("B")

CHECKPOINT_SECONDS = 60.0  # between two checkpoints within an epoch
EXPLODED = 10.0  # times the first loss: no training that still works gets there


class Loss(NamedTuple):
    """What one backward pass needs; its gradient is that of total / step_items."""

    total: Tensor  # summed over the items that this process scored
    items: int  # that all processes scored
    step_items: int  # the same of all losses of the optimizer step
    step: bool = True  # take the optimizer step after this one


@dataclass
class Epoch:
    """How far an epoch is."""

    batches: int = 0
    steps: int = 0
    total: float = 0.0  # Σ loss
    count: int = 0  # of items

    def add(self, total: float, count: int) -> None:
        """Another step."""
        self.steps, self.total, self.count = self.steps + 1, self.total + total, self.count + count


@dataclass
class Fit:
    """The result of a training: one curve row an epoch, and where it ended."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False
    first_loss: float = math.nan  # of the first step
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

    def summary(self, train: int, val: int) -> dict[str, Any]:
        """The kept epoch in figures; train, val: sizes of what was trained on."""
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
        return summary


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
    batches: Callable[[int], Sequence[B]],
    losses: Callable[[B], Iterator[Loss]],
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

    batches(epoch): the batches of an epoch, counted from 1. losses(batch) yields a batch's losses,
    each backpropagated before the next is asked for. steps: optimizer steps of each epoch.
    validate() gives the validation loss; without it the last epoch is kept. patience: epochs
    without a better validation loss before stopping. schedule(step) multiplies every learning
    rate. clip: maximum gradient norm.
    InputError: the loss diverged. Stopped: a signal asked for it; the next call goes on.
    """
    best: dict[str, Tensor] = {name: t.detach().clone() for name, t in trained.items()}
    # The checkpoint holds the weights as they are and as they were at their best.
    stored: dict[str, Tensor] = {**trained} | {f"best.{name}": t for name, t in best.items()}
    result, so_far = Fit(), Epoch()
    if record := checkpoint.load(stored, optimizers):
        result, so_far = Fit(**record["fit"]), Epoch(**record["epoch"])
        log.info("%s: goes on in epoch %d, step %d", title, len(result.curve) + 1, so_far.steps)
    base_lrs = [[group["lr"] for group in o.param_groups] for o in optimizers]
    parameters = list(trained.values())
    clock = saved = time.perf_counter()

    def save() -> None:
        nonlocal clock, saved
        saved = time.perf_counter()
        result.seconds, clock = result.seconds + saved - clock, saved
        if engine.is_main():
            checkpoint.save(stored, optimizers, {"fit": vars(result), "epoch": vars(so_far)})

    def take_step(step: int) -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * (schedule(step) if schedule else 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def check(loss: float) -> None:
        if math.isnan(result.first_loss):
            result.first_loss = loss
        if math.isfinite(loss) and loss <= EXPLODED * result.first_loss:
            return
        kept = f"; the best weights so far are in {checkpoint.path}" if result.curve else ""
        raise InputError(
            f"{title}: the loss is {loss:.6g} in epoch {len(result.curve) + 1}, step "
            f"{so_far.steps} (at first {result.first_loss:.6g}): lower the learning rate{kept}"
        )

    done = sum(steps[: len(result.curve)]) + so_far.steps
    with LiveView(title, sum(steps), done) as view, stop_requests() as asked_to_stop:
        while len(result.curve) < len(steps) and not result.stopped_early:
            epoch = len(result.curve) + 1
            before = sum(steps[: epoch - 1])
            for batch in batches(epoch)[so_far.batches :]:
                total, count, stop = torch.zeros((), device=parameters[0].device), 0, False
                for loss in losses(batch):
                    (loss.total / loss.step_items).backward()
                    total, count = total + loss.total.detach(), count + loss.items
                    if not loss.step:
                        continue
                    asked = total.new_tensor(asked_to_stop())
                    summed = engine.sum_gradients(parameters, torch.stack([total, asked]))
                    whole, stops = summed.tolist()
                    check(whole / count)
                    take_step(before + so_far.steps)
                    so_far.add(whole, count)
                    view.took_step(whole / count, count)
                    total, count, stop = torch.zeros_like(total), 0, stop or stops > 0
                so_far.batches += 1
                if stop or time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    save()
                if stop:
                    raise Stopped(f"{title}: saved in epoch {epoch}, step {so_far.steps}")

            val_loss = validate() if validate else math.nan
            row = {"epoch": epoch, "train_loss": so_far.total / so_far.count, "val_loss": val_loss}
            better = not validate or not result.curve or val_loss < result.best["val_loss"]
            result.curve.append(row)
            if better:
                result.best_epoch = epoch
                for name, t in trained.items():
                    best[name].copy_(t.detach())
            result.stopped_early = patience is not None and epoch - result.best_epoch >= patience
            view.ended_epoch(row, len(steps), result.best)
            so_far = Epoch()
            save()
    for name, t in trained.items():
        t.data.copy_(best[name])
    return result
