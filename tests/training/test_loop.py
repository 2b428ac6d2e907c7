"""Training loop: early stopping, best weights, resuming to the same bits."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from infini.console.signals import Stopped
from infini.errors import InputError
from infini.model import tensor_files as tensors
from infini.model.modules import infini_parameters, parameter_groups
from infini.model.retrofit import retrofit
from infini.training import loop as training
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit, Loss, Task, adamw, fit


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        [adamw(trained, {}, 0.1, 0.1)],
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
def test_killed_training_resumes_to_the_same_bits(
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
def test_signal_saves_and_stops(number: signal.Signals) -> None:
    handlers = signal.getsignal(number)
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    with pytest.raises(Stopped, match="saved in epoch 4, step 3"):
        quadratic(6, fail_in=4, how=lambda: signal.raise_signal(number))
    assert signal.getsignal(number) is handlers
    _, got = quadratic(6)
    assert torch.equal(got, expected)


def test_resume_ignores_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    times = cycle([0.0, 4e9, 1.0, -5.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    with pytest.raises(KeyboardInterrupt):
        quadratic(6, fail_in=4)
    (file,) = Path(".checkpoints").iterdir()
    os.utime(file, (4e9, 4e9))
    _, got = quadratic(6)
    assert torch.equal(got, expected)


def test_full_disk_leaves_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_diverging_loss_stops_and_keeps_the_best_weights(factor: float) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    checkpoint = Checkpoint("diverges", "key")

    def losses(batch: tuple[int, int]) -> Iterator[Loss]:
        yield Loss(weight * 0 + (factor if batch == (2, 1) else 1.0), 1, 1)

    optimizer = adamw({"w": weight}, {}, 0.1, 0.1)
    task = Task(
        "diverges",
        {"w": weight},
        [optimizer],
        lambda epoch: [(epoch, i) for i in range(2)],
        losses,
        [2, 2],
    )
    with pytest.raises(
        InputError, match=rf"the loss is {factor:g} in epoch 2, step 1 .*{checkpoint.path}"
    ):
        fit(task, checkpoint)
    assert "tensor/best.w" in load_file(checkpoint.path)


GATES = {
    "replace": ["layer.attention.attention.beta"],
    "parallel": ["attention.beta", "alpha"],
    "window": ["memory.beta.bias", "memory.gate.bias", "memory.decay.bias", "retained.bias"],
}


@pytest.mark.parametrize("method", GATES)
def test_gates_have_their_own_learning_rate_and_no_weight_decay(
    model: PreTrainedModel, method: str
) -> None:
    options: dict[str, Any] = {
        "replace": {"layers": [0], "segment_length": 16},
        "parallel": {"layers": [0], "segment_length": 16},
        "window": {"layers": [0], "window": 8, "retained": 4, "update": "gated_delta"},
    }
    retrofit(model, method, **options[method])
    weights, gates = parameter_groups(model)
    assert {name.removeprefix("layers.0.") for name in gates} == set(GATES[method])
    assert weights
    assert weights | gates == infini_parameters(model)
    slow, fast = adamw(weights, gates, 0.1, 0.5).param_groups
    assert [*map(id, slow["params"])] == [*map(id, weights.values())]
    assert [*map(id, fast["params"])] == [*map(id, gates.values())]
    assert (slow["lr"], fast["lr"], fast["weight_decay"]) == (0.1, 0.5, 0)


def test_schedule_scales_learning_rates_and_gradients_are_clipped() -> None:
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
