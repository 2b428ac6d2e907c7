"""Losses of long documents: every token once, gradients through the memory as asked for."""

import pytest
import torch
from transformers import PreTrainedModel

from infini.model.layers import our_tensors
from infini.model.retrofit import retrofit
from infini.training.config import LongRecipe
from infini.training.long_context import Documents
from toy import long_recipe, some_pieces

L = 16


def gradients(model: PreTrainedModel, how: LongRecipe) -> tuple[float, list[bool], torch.Tensor]:
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    total, count, steps = 0.0, 0, []
    for chosen in torch.tensor([[0], [1]]):
        for loss in Documents(model, text, L, how).losses(chosen):
            (loss.total / loss.step_items).backward()
            total, count = total + loss.total.item(), count + loss.items
            steps.append(loss.step)
    flat = torch.cat([p.grad.flatten() for p in our_tensors(model).values() if p.grad is not None])
    return total / count, steps, flat


def test_document_losses_cover_every_token_whatever_the_chunks(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    whole, steps, exact = gradients(model, long_recipe())
    assert steps == [True, True]
    pairs, steps, truncated = gradients(model, long_recipe(bptt_segments=1))
    assert steps == [False, True, False, True]
    segments, steps, detached = gradients(model, long_recipe(update="segment", bptt_segments=0))
    assert steps == [True] * 8
    # No optimizer runs here: the values agree, the gradients through the memory do not.
    assert pairs == pytest.approx(whole, rel=1e-5)
    assert segments == pytest.approx(whole, rel=1e-5)
    assert not torch.allclose(truncated, exact, rtol=1e-3)
    assert not torch.allclose(detached, exact, rtol=1e-3)


def test_gradient_of_a_document_is_that_of_its_mean_loss(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    how = long_recipe(bptt_segments=0)
    _, _, weighted = gradients(model, how)
    text = some_pieces([64, 64], 64)
    model.zero_grad()
    for loss in Documents(model, text, L, how).losses(torch.tensor([0, 1])):
        (loss.total / 63).backward()
    flat = torch.cat([p.grad.flatten() for p in our_tensors(model).values() if p.grad is not None])
    torch.testing.assert_close(flat, weighted)
