"""The one loop: early stopping, best weights, resuming to the same bits; its losses."""

import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from infini import checkpoint, training
from infini.base import decoder_layers
from infini.checkpoint import Checkpoint, fingerprint
from infini.distillation import distillation_error, record_layer, squared_error
from infini.documents import document_losses
from infini.errors import InputError
from infini.losses import cross_entropy, head_of, next_token
from infini.params import LongRecipe
from infini.perplexity import double_shift
from infini.pieces import Pieces
from infini.segments import run_segments
from infini.signals import Stopped
from infini.surgery import infini_slots, our_tensors, retrofit
from infini.training import Fit, Loss, adamw, fit

L = 16


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
    result = fit(
        trained,
        [adamw(trained, 0.1, 0.1)],
        lambda epoch: [(epoch, i) for i in range(4)],
        losses,
        steps=[4] * epochs,
        checkpoint=Checkpoint("quadratic", "key"),
        validate=(lambda: next(left)) if vals else None,
        patience=patience,
    )
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


def test_a_full_disk_leaves_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = quadratic(6)
    Checkpoint("quadratic", "key").remove()
    real = checkpoint.save_file

    def full() -> None:
        def save_file(tensors: object, file: Path, metadata: object) -> None:
            file.write_bytes(b"part of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", save_file)

    with pytest.raises(InputError, match=r"No space left on device.*the last checkpoint is kept"):
        quadratic(6, fail_in=4, how=full)
    assert len(list(Path(".checkpoints").iterdir())) == 1
    monkeypatch.setattr(checkpoint, "save_file", real)
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

    with pytest.raises(
        InputError, match=rf"the loss is {factor:g} in epoch 2, step 1 .*{kept.path}"
    ):
        fit(
            {"w": weight},
            [adamw({"w": weight}, 0.1, 0.1)],
            lambda epoch: [(epoch, i) for i in range(2)],
            losses,
            steps=[2, 2],
            checkpoint=kept,
        )
    assert "tensor/best.w" in load_file(kept.path)


def test_the_key_follows_settings_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a")
    first = fingerprint({"lr": 1.0}, [tmp_path / "in"])
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) == first
    assert fingerprint({"lr": 2.0}, [tmp_path / "in"]) != first
    (tmp_path / "in").write_text("b")
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) != first


def test_gates_have_their_own_rate_and_no_decay() -> None:
    names = ["layers.0.alpha", "layers.0.attention.beta", "layers.0.attention.q_proj.weight"]
    groups = adamw({n: nn.Parameter(torch.ones(1)) for n in names}, 0.1, 0.5).param_groups
    assert [(len(g["params"]), g["lr"]) for g in groups] == [(1, 0.1), (2, 0.5)]
    assert groups[1]["weight_decay"] == 0


def some_pieces(lengths: list[int], width: int, seed: int = 0) -> Pieces:
    tokens = torch.randint(
        300, (len(lengths), width), generator=torch.Generator().manual_seed(seed)
    )
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Pieces(tokens * mask, mask, torch.tensor(lengths), torch.arange(len(lengths)))


def test_distillation_ignores_padding_and_carries_no_memory(model: PreTrainedModel) -> None:
    text = some_pieces([16, 9], L)
    teacher = record_layer(model, 0, text)
    retrofit(model, "replace", local="linear", init="random", segment_length=L)
    layer = infini_slots(model)[0]
    both = distillation_error(layer, teacher)
    total = 0.0
    for i, length in enumerate((16, 9)):  # each by itself, without its padding
        out = layer(teacher.inputs[i : i + 1, :length])
        total += (out - teacher.outputs[i : i + 1, :length]).square().mean().item() * length
    assert both == pytest.approx(total / 25, rel=1e-5)
    teacher.inputs[1, 9:] = 1e3
    teacher.outputs[1, 9:] = -1e3
    assert distillation_error(layer, teacher) == pytest.approx(both, rel=1e-6)
    assert squared_error(layer, teacher, torch.tensor([0, 1])).requires_grad


def test_the_teacher_is_the_bases_own_layer(model: PreTrainedModel) -> None:
    text = some_pieces([16, 16], L)
    hidden = model(text.tokens, output_hidden_states=True).hidden_states
    teacher = record_layer(model, 0, text)
    torch.testing.assert_close(teacher.inputs, hidden[0])
    torch.testing.assert_close(teacher.outputs, hidden[1])
    assert len(decoder_layers(model)) == 2


def recipe(**changed: object) -> LongRecipe:
    values = {
        "epochs": 1, "lr": 1e-3, "gate_lr": 1e-2, "batch_size": 1, "hold_out": False,
        "patience": None, "documents": None, "update": "document", "bptt_segments": None,
    }  # fmt: skip
    return LongRecipe(**(values | changed))


def gradients(model: PreTrainedModel, how: LongRecipe) -> tuple[float, list[bool], torch.Tensor]:
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    total, count, steps = 0.0, 0, []
    for chosen in torch.tensor([[0], [1]]):
        for loss in document_losses(model, text, L, how, chosen):
            (loss.total / loss.step_items).backward()
            total, count = total + loss.total.item(), count + loss.items
            steps.append(loss.step)
    flat = torch.cat([p.grad.flatten() for p in our_tensors(model).values() if p.grad is not None])
    return total / count, steps, flat


def test_document_losses_cover_every_token_whatever_the_chunks(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    whole, steps, exact = gradients(model, recipe())
    assert steps == [True, True]
    pairs, steps, truncated = gradients(model, recipe(bptt_segments=1))
    assert steps == [False, True, False, True]
    segments, steps, detached = gradients(model, recipe(update="segment", bptt_segments=0))
    assert steps == [True] * 8
    # No optimizer runs here: the values agree, the gradients through the memory do not.
    assert pairs == pytest.approx(whole, rel=1e-5)
    assert segments == pytest.approx(whole, rel=1e-5)
    assert not torch.allclose(truncated, exact, rtol=1e-3)
    assert not torch.allclose(detached, exact, rtol=1e-3)


def test_gradient_of_a_document_is_that_of_its_mean_loss(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    how = recipe(bptt_segments=0)
    _, _, weighted = gradients(model, how)
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    for loss in document_losses(model, text, L, how, torch.tensor([0, 1])):
        (loss.total / 63).backward()
    flat = torch.cat([p.grad.flatten() for p in our_tensors(model).values() if p.grad is not None])
    torch.testing.assert_close(flat, weighted)


def test_labels_shifted_twice_are_the_seeds_loop(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=0.0)  # no memory to differ in
    text = some_pieces([64, 50], 64)
    losses = list(document_losses(model, text, L, recipe(label_shift=2), torch.arange(2)))
    expected = double_shift(model, text, L)
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.total, rel=1e-5)
    assert sum(loss.items for loss in losses) == expected.tokens


def test_carried_memory_is_the_document_befores(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    text = some_pieces([64, 64], 64)
    second, first = torch.tensor([1]), torch.tensor([0])
    (carried,) = document_losses(model, text, L, recipe(), second, first)
    (fresh,) = document_losses(model, text, L, recipe(), second)
    with torch.no_grad():
        hidden, _ = run_segments(model, text.tokens.flatten()[None], L)
        targets = next_token(text.tokens[1:], text.mask[1:])
        expected = cross_entropy(hidden[:, 64:], head_of(model), targets).sum()
    torch.testing.assert_close(carried.total, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(carried.total, fresh.total, rtol=1e-5)
