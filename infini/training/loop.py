"""Training loop of pretraining, distillation, finetuning and adapters.

They differ in their batches, the losses of a batch and a validation function. Early stopping
keeps the best epoch's weights. A checkpoint after every epoch, and every minute, lets a killed run
continue to the same bits: batches are a function of seed and epoch, and only parameters and
optimizer states go from one batch to the next.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infini import processes
from infini.console.live import LiveCurves, ProgressView, TrainingCallback
from infini.console.signals import Stopped, stop_requests
from infini.errors import InputError
from infini.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)

B = TypeVar("B")

CHECKPOINT_SECONDS = 60.0  # between two checkpoints within an epoch
DIVERGED = 10.0  # times the first loss


class Loss(NamedTuple):
    """Loss of one backward pass; its gradient is that of total / step_items."""

    total: Tensor  # scalar, summed over the items that this process scored
    items: int  # number of items that all processes scored
    step_items: float  # the same, over all losses of the optimizer step, divided by their weight
    step: bool = True  # take the optimizer step after this loss
    kind: str = ""  # only losses of the same kind are compared, to notice divergence


@dataclass(frozen=True)
class Task(Generic[B]):
    """Definition of a training."""

    title: str
    trained: dict[str, nn.Parameter]
    optimizers: list[Optimizer]
    # batches of an epoch, which counts from 1
    batches: Callable[[int], Sequence[B]]
    # losses of a batch; each is backpropagated before the next is computed
    losses: Callable[[B], Iterator[Loss]]
    # optimizer steps of each epoch
    steps: list[int]
    # returns the validation loss; None: the last epoch is kept
    validate: Callable[[], float] | None = None
    # epochs without a better validation loss before stopping; None: never
    patience: int | None = None
    # factor of every learning rate at a step, which counts from 0
    schedule: Callable[[int], float] = lambda step: 1.0
    # maximum gradient norm
    clip: float | None = None


@dataclass
class Epoch:
    """Progress within an epoch."""

    batches: int = 0
    steps: int = 0
    total: float = 0.0  # sum of losses
    count: int = 0  # number of items

    def add(self, total: float, count: int) -> None:
        """Count a step."""
        self.steps, self.total, self.count = self.steps + 1, self.total + total, self.count + count


@dataclass
class Fit:
    """Course of a training."""

    curve: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    best_epoch: int = 0
    stopped_early: bool = False
    first_losses: dict[str, float] = field(default_factory=dict)  # by kind
    seconds: float = 0.0

    @property
    def best(self) -> dict[str, float]:
        """Row of the epoch whose weights are kept."""
        return self.curve[self.best_epoch - 1]

    @property
    def seconds_per_epoch(self) -> float:
        """Wall time of an epoch, validation included."""
        return round(self.seconds / len(self.curve), 2)

    def table(self) -> pd.DataFrame:
        """Return the curve: columns epoch, train_loss, val_loss (empty without validation)."""
        return pd.DataFrame(self.curve, columns=["epoch", "train_loss", "val_loss"])

    def summary(self, train: int, val: int) -> dict[str, Any]:
        """Return the figures of a training on `train` items, validated on `val` items."""
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


def adamw(
    weights: dict[str, nn.Parameter], gates: dict[str, nn.Parameter], lr: float, gate_lr: float
) -> Optimizer:
    """Return AdamW for the two groups of `parameter_groups`.

    Gates have their own learning rate and no weight decay, or they would hardly move.
    """
    return torch.optim.AdamW(
        [
            {"params": list(weights.values()), "lr": lr},
            {"params": list(gates.values()), "lr": gate_lr, "weight_decay": 0.0},
        ],
        fused=True,
    )


def fit(task: Task[B], checkpoint: Checkpoint) -> Fit:
    """Train `task.trained` in place.

    Args:
        task: The training.
        checkpoint: Where to continue from, if it exists, and to save to.

    Returns:
        The course of the training.

    Raises:
        InputError: If the loss diverges.
        Stopped: If a signal asks for it; the next call continues.
    """
    training = _Training(task, checkpoint)
    training.resume()
    with ExitStack() as stack:
        callbacks: list[TrainingCallback] = []
        if processes.is_main():
            sizes = sum(task.steps), training.steps_done, len(task.steps)
            callbacks.append(stack.enter_context(ProgressView(task.title, *sizes)))
            callbacks.append(stack.enter_context(LiveCurves(task.title, *sizes)))
        stop_requested = stack.enter_context(stop_requests())
        while not training.done:
            training.run_epoch(callbacks, stop_requested)
    training.keep_best()
    return training.fit


class _Training(Generic[B]):
    """State of a running task."""

    def __init__(self, task: Task[B], checkpoint: Checkpoint):
        self.task, self.checkpoint = task, checkpoint
        self.parameters = list(task.trained.values())
        self.best = {name: t.detach().clone() for name, t in task.trained.items()}
        # The checkpoint holds the present weights and the best ones.
        self.stored: dict[str, Tensor] = {
            **task.trained,
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
        }
        self.base_lrs = [[group["lr"] for group in o.param_groups] for o in task.optimizers]
        self.fit, self.epoch = Fit(), Epoch()
        self.saved = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether no epoch is left."""
        return len(self.fit.curve) == len(self.task.steps) or self.fit.stopped_early

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far, this epoch included."""
        return sum(self.task.steps[: len(self.fit.curve)]) + self.epoch.steps

    def resume(self) -> None:
        """Continue from the checkpoint, if it exists."""
        if record := self.checkpoint.load(self.stored, self.task.optimizers):
            self.fit, self.epoch = Fit(**record["fit"]), Epoch(**record["epoch"])
            at = len(self.fit.curve) + 1, self.epoch.steps
            log.info("%s: continues in epoch %d, step %d", self.task.title, *at)

    def save(self) -> None:
        """Write the checkpoint."""
        now = time.perf_counter()
        self.fit.seconds, self.saved = self.fit.seconds + now - self.saved, now
        if processes.is_main():
            record = {"fit": vars(self.fit), "epoch": vars(self.epoch)}
            self.checkpoint.save(self.stored, self.task.optimizers, record)

    def run_epoch(
        self, callbacks: list[TrainingCallback], stop_requested: Callable[[], bool]
    ) -> None:
        """Run the batches left of the present epoch."""
        number = len(self.fit.curve) + 1
        for batch in self.task.batches(number)[self.epoch.batches :]:
            stop = self._run_batch(batch, callbacks, stop_requested)
            self.epoch.batches += 1
            if stop or time.perf_counter() - self.saved > CHECKPOINT_SECONDS:
                self.save()
            if stop:
                raise Stopped(
                    f"{self.task.title}: saved in epoch {number}, step {self.epoch.steps}"
                )
        self._end_epoch(number, callbacks)
        self.save()

    def _run_batch(
        self, batch: B, callbacks: list[TrainingCallback], stop_requested: Callable[[], bool]
    ) -> bool:
        """Run a batch's losses and steps; return whether any process should stop."""
        total, count, stop = torch.zeros((), device=self.parameters[0].device), 0, False
        for loss in self.task.losses(batch):
            (loss.total / loss.step_items).backward()
            total, count = total + loss.total.detach(), count + loss.items
            if not loss.step:
                continue
            requested = total.new_tensor(stop_requested())
            summed = processes.sum_gradients(self.parameters, torch.stack([total, requested]))
            whole, stops = summed.tolist()
            self._check(whole / count, loss.kind)
            self._take_step()
            self.epoch.add(whole, count)
            for callback in callbacks:
                callback.on_step_end(whole / count, count)
            total, count, stop = torch.zeros_like(total), 0, stop or stops > 0
        return stop

    def _check(self, loss: float, kind: str) -> None:
        """Raise InputError if the loss has diverged."""
        first = self.fit.first_losses.setdefault(kind, loss)
        if math.isfinite(loss) and loss <= DIVERGED * first:
            return
        best = f"; the best weights so far are in {self.checkpoint.path}" if self.fit.curve else ""
        raise InputError(
            f"{self.task.title}: the loss is {loss:.6g} in epoch {len(self.fit.curve) + 1}, step "
            f"{self.epoch.steps} (at first {first:.6g}): lower the learning rate{best}"
        )

    def _take_step(self) -> None:
        """Take a step of every optimizer at the scheduled learning rates."""
        if self.task.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.task.clip)
        factor = self.task.schedule(self.steps_done)
        for optimizer, lrs in zip(self.task.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()

    def _end_epoch(self, number: int, callbacks: list[TrainingCallback]) -> None:
        """Validate, keep the best weights, start the next epoch."""
        task, fit = self.task, self.fit
        val_loss = task.validate() if task.validate else math.nan
        train_loss = self.epoch.total / self.epoch.count
        row = {"epoch": number, "train_loss": train_loss, "val_loss": val_loss}
        better = not task.validate or not fit.curve or val_loss < fit.best["val_loss"]
        fit.curve.append(row)
        if better:
            fit.best_epoch = number
            for name, tensor in task.trained.items():
                self.best[name].copy_(tensor.detach())
        fit.stopped_early = task.patience is not None and number - fit.best_epoch >= task.patience
        for callback in callbacks:
            callback.on_epoch_end(row, fit.best)
        self.epoch = Epoch()

    def keep_best(self) -> None:
        """Restore the weights of the best epoch."""
        for name, tensor in self.task.trained.items():
            tensor.data.copy_(self.best[name])
