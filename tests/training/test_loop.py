"""The one loop: early stopping, best weights, resuming to the same bits."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from infini.console.signals import Stopped
from infini.errors import InputError
from infini.model import tensor_files as tensors
from infini.training import loop as training
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit, Loss, Task, adamw, fit


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quadratic(
    epochs: int,
    fail_in: int | None = None,
    how: Callable[[], None] = lambda: _raise(KeyboardInterrupt),
    patience: int | None = None,
    vals: list[float] | None = None,
) -> tuple[Fit, torch.Tensor]:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    trained = {"w": weight}

    def losses(batch: tuple[int, int]) -> Iterator[Loss]:
        epoch, i = batch
        if epoch == fail_in and i == 2:
            how()
        noise = torch.randn(2, generator=torch.Generator().manual_seed(10 * epoch + i))
        yield Loss((weight + noise).square().sum(), 1, 1)

    left = iter(vals or [])
    task = Task(
        "quadratic",
        trained,
        [adamw(trained, 0.1, 0.1)],
        lambda epoch: [(epoch, i) for i in range(4)],
        losses,
        [4] * epochs,
        validate=(lambda: next(left)) if vals else None,
        patience=patience,
    )
    result = fit(task, Checkpoint("quadratic", "key"))
    return result, weight.detach().clone()


def _raise(kind: type[BaseException]) -> None:
    raise kind


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["every batch", "every epoch"])
def test_a_killed_run_continues_to_the_same_bits(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    undisturbed, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    with pytest.raises(KeyboardInterrupt):
        quadratic(6, fail_in=4)
    resumed, got = quadratic(6)
    assert torch.equal(got, expected)
    assert [r["train_loss"] for r in resumed.curve] == [r["train_loss"] for r in undisturbed.curve]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(number: signal.Signals) -> None:
    handlers = signal.getsignal(number)
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    with pytest.raises(Stopped, match="saved in epoch 4, step 3"):
        quadratic(6, fail_in=4, how=lambda: signal.raise_signal(number))
    assert signal.getsignal(number) is handlers
    _, got = quadratic(6)
    assert torch.equal(got, expected)


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    times = cycle([0.0, 4e9, 1.0, -5.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    with pytest.raises(KeyboardInterrupt):
        quadratic(6, fail_in=4)
    (kept,) = Path(".checkpoints").iterdir()
    os.utime(kept, (4e9, 4e9))
    _, got = quadratic(6)
    assert torch.equal(got, expected)


def test_a_full_disk_leaves_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    real = tensors.save_file

    def full() -> None:
        def save_file(_: object, file: Path, metadata: object) -> None:
            file.write_bytes(b"part of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tensors, "save_file", save_file)

    with pytest.raises(InputError, match=r"No space left on device.*the last checkpoint is kept"):
        quadratic(6, fail_in=4, how=full)
    assert len(list(Path(".checkpoints").iterdir())) == 1
    monkeypatch.setattr(tensors, "save_file", real)
    _, got = quadratic(6)
    assert torch.equal(got, expected)


def test_early_stopping_keeps_the_best_epoch() -> None:
    _, at_two = quadratic(2)
    Checkpoint("quadratic", "key").remove()
    result, weight = quadratic(9, patience=2, vals=[3.0, 1.0, 2.0, 1.5, 0.5])
    assert (len(result.curve), result.best_epoch, result.stopped_early) == (4, 2, True)
    assert torch.equal(weight, at_two)
    assert result.best["val_loss"] == 1.0


@pytest.mark.parametrize("factor", [math.nan, math.inf, 11.0])
def test_a_diverging_loss_stops_with_its_place_and_keeps_the_best(factor: float) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    kept = Checkpoint("diverges", "key")

    def losses(batch: tuple[int, int]) -> Iterator[Loss]:
        yield Loss(weight * 0 + (factor if batch == (2, 1) else 1.0), 1, 1)

    optimizer = adamw({"w": weight}, 0.1, 0.1)
    task = Task(
        "diverges",
        {"w": weight},
        [optimizer],
        lambda epoch: [(epoch, i) for i in range(2)],
        losses,
        [2, 2],
    )
    with pytest.raises(
        InputError, match=rf"the loss is {factor:g} in epoch 2, step 1 .*{kept.path}"
    ):
        fit(task, kept)
    assert "tensor/best.w" in load_file(kept.path)


def test_gates_have_their_own_rate_and_no_decay() -> None:
    gates = ["alpha", "attention.beta", "memory.gate.bias", "memory.decay.bias", "kept.bias"]
    weights = ["attention.q_proj.weight", "attention.q_proj.bias", "memory.gate.weight"]
    names = [f"layers.0.{name}" for name in gates + weights]
    groups = adamw({n: nn.Parameter(torch.ones(1)) for n in names}, 0.1, 0.5).param_groups
    assert [(len(g["params"]), g["lr"]) for g in groups] == [(3, 0.1), (5, 0.5)]
    assert groups[1]["weight_decay"] == 0


def test_the_schedule_multiplies_the_rates_and_gradients_are_clipped() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)

    def losses(batch: int) -> Iterator[Loss]:
        yield Loss((weight * torch.tensor([30.0, 40.0])).sum(), 1, 1)

    task = Task(
        "clipped", {"w": weight}, [optimizer], lambda epoch: [0, 1], losses, [2],
        schedule=lambda step: (1.0, 0.1)[step], clip=1.0,
    )  # fmt: skip
    fit(task, Checkpoint("clipped", "key"))
    # Two steps along (0.6, 0.8), of 0.5 and of 0.05.
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0 - 0.33, 4.0 - 0.44]))
