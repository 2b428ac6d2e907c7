"""Training on long documents: losses, gradients through the memory, controls, batches."""

import pytest
import torch
from transformers import PreTrainedModel

from infini.evaluation import perplexity
from infini.evaluation.config import FullProtocol
from infini.evaluation.losses import cross_entropy, next_token
from infini.model.architectures import output_head
from infini.model.forward import forward_documents, memory_mode
from infini.model.modules import infini_parameters
from infini.model.retrofit import retrofit
from infini.training.config import DocumentRecipe, LongRecipe
from infini.training.long_context import (
    ControlTraining,
    DocumentBatch,
    DocumentTraining,
    linear_schedule,
)
from infini.training.teacher import record_log_probs
from toy import batch, long_recipe, some_pieces, window_recipe

L = 16
WINDOWS = [8, 32, 62]


def contents(batches: list[DocumentBatch]) -> list[tuple[list[int], int | None, int | None]]:
    return [(one.rows.tolist(), one.window, one.question_seed) for one in batches]


def gradients(model: PreTrainedModel, recipe: LongRecipe) -> tuple[float, list[bool], torch.Tensor]:
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    total, count, steps = 0.0, 0, []
    for row in (0, 1):
        for loss in DocumentTraining(model, text, L, recipe).losses(batch(row)):
            (loss.total / loss.step_items).backward()
            total, count = total + loss.total.item(), count + loss.items
            steps.append(loss.step)
    flat = torch.cat(
        [p.grad.flatten() for p in infini_parameters(model).values() if p.grad is not None]
    )
    return total / count, steps, flat


def test_losses_cover_every_token_in_any_chunks(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    whole, steps, exact = gradients(model, long_recipe())
    assert steps == [True, True]
    pairs, steps, truncated = gradients(model, long_recipe(bptt_segments=1))
    assert steps == [False, True, False, True]
    segments, steps, detached = gradients(model, long_recipe(update="segment", bptt_segments=0))
    assert steps == [True] * 8
    # Without optimizer steps values agree; gradients through the memory do not.
    assert pairs == pytest.approx(whole, rel=1e-5)
    assert segments == pytest.approx(whole, rel=1e-5)
    assert not torch.allclose(truncated, exact, rtol=1e-3)
    assert not torch.allclose(detached, exact, rtol=1e-3)


def test_losses_have_the_gradient_of_the_mean(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    recipe = long_recipe(bptt_segments=0)
    _, _, weighted = gradients(model, recipe)
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    for loss in DocumentTraining(model, text, L, recipe).losses(batch(0, 1)):
        (loss.total / 63).backward()
    flat = torch.cat(
        [p.grad.flatten() for p in infini_parameters(model).values() if p.grad is not None]
    )
    torch.testing.assert_close(flat, weighted)


def test_control_reads_the_next_documents_memory(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    text = some_pieces([64, 64, 64], 64)
    with memory_mode(model, "swapped"):
        (loss,) = ControlTraining(model, text, L, long_recipe()).losses(batch(2))
        hidden, _ = forward_documents(model, text.tokens[[2, 0]], L)
    targets = next_token(text.tokens[2:], text.mask[2:])
    expected = cross_entropy(hidden[:1], output_head(model), targets).sum()
    torch.testing.assert_close(loss.total, expected)
    assert (loss.items, loss.step_items, loss.step) == (63, 63, True)
    (own,) = DocumentTraining(model, text, L, long_recipe()).losses(batch(2))
    assert not torch.allclose(own.total, loss.total, rtol=1e-5)


def test_losses_of_a_window_cover_whole_documents(model: PreTrainedModel) -> None:
    retrofit(model, "window", window=8, sinks=2)
    text = some_pieces([64, 64], 64)
    recipe = long_recipe().model_dump(exclude={"update", "bptt_segments"})
    documents = DocumentTraining(model, text, L, DocumentRecipe(**recipe))
    assert documents.steps == 2
    (loss,) = documents.losses(batch(1))
    loss.total.backward()
    expected = perplexity.score_documents(model, text, L).nats[1].sum()
    torch.testing.assert_close(loss.total.detach(), expected)
    assert any(p.grad is not None and p.grad.any() for p in infini_parameters(model).values())


def test_control_validates_with_another_documents_memory(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    train, val = some_pieces([64, 64], 64), some_pieces([64, 64], 64, seed=1)
    control = ControlTraining(model, train, L, long_recipe())
    both = perplexity.score_documents(model, val, L, "swapped")
    assert control.validate(val) == pytest.approx(both.mean)
    pair = perplexity.score_documents(model, val.first(1) + train.first(1), L, "swapped")
    assert control.validate(val.first(1)) == pytest.approx(pair.nats[0].sum().item() / 63)


def test_paired_rows_of_an_even_batch_are_empty(model: PreTrainedModel) -> None:
    text = some_pieces([64, 64, 64], 64)
    control = ControlTraining(model, text, L, long_recipe())
    assert control.paired_rows(torch.tensor([2])).tolist() == [0]
    assert control.paired_rows(torch.tensor([2, 0])).tolist() == []


def test_losses_by_teacher_and_drawn_windows(model: PreTrainedModel) -> None:
    text = some_pieces([64, 64, 64, 64], 64)
    teacher = record_log_probs(model, text, FullProtocol(context=64, stride=64))
    retrofit(model, "window", window=8, sinks=2, retained=4)
    recipe = window_recipe(objective="distillation", windows=WINDOWS, batch_size=1)
    documents = DocumentTraining(model, text, L, recipe, teacher)
    sizes = {one.window for epoch in range(1, 9) for one in documents.batches(epoch)}
    assert sizes == set(WINDOWS)
    whole, windowed = (
        next(documents.losses(batch(row, window=size))).total.item()
        for row, size in ((0, 62), (1, 8))
    )
    assert model.get_decoder().retrofit_config.window == 8, "restored"
    assert abs(whole) < 0.05, "a window over the whole text agrees with the teacher"
    assert windowed > 10 * abs(whole)


def test_linear_schedule() -> None:
    factors = [linear_schedule(10, step) for step in range(10)]
    assert factors[:2] == [0.5, 1.0]
    assert factors == sorted(factors[:2]) + sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(0.1)
    assert linear_schedule(1, 0) == 1.0


def test_batches_depend_on_the_seed_alone(model: PreTrainedModel) -> None:
    text = some_pieces([64] * 5, 64)
    recipe = window_recipe(windows=WINDOWS, batch_size=2, question_share=0.5)
    first, again = (
        [DocumentTraining(model, text, L, recipe).batches(seed) for seed in range(8)]
        for _ in range(2)
    )
    assert list(map(contents, first)) == list(map(contents, again))
    assert all(sorted(torch.cat([one.rows for one in e]).tolist()) == [*range(5)] for e in first)
    plain = DocumentTraining(model, text, L, window_recipe(windows=WINDOWS, batch_size=2))
    for seed, epoch in enumerate(first):
        without = [(rows, window, None) for rows, window, _ in contents(epoch)]
        assert contents(plain.batches(seed)) == without, (
            "rows and windows are the same without questions"
        )
    seeds = [one.question_seed for epoch in first for one in epoch if one.question_seed is not None]
    assert len(set(seeds)) == len(seeds), "no two batches have the same facts"
