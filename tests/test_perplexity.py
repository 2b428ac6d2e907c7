"""The protocols against Hugging Face's own loss and slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from infini.perplexity import CHUNK, cross_entropy, double_shift, segmented, sliding
from infini.pieces import Pieces
from infini.surgery import retrofit

L = 16


def pieces(lengths: list[int], width: int) -> Pieces:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(300, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Pieces(tokens * mask, mask, torch.tensor([4 * n for n in lengths]))


def log_probabilities(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return F.log_softmax(model(tokens[None]).logits[0].double(), -1)


def test_short_is_hugging_faces_loss(model: PreTrainedModel) -> None:
    text = pieces([16, 11, 8], L)
    score = segmented(model, text, L)
    nats = 0.0
    for row, mask in zip(text.tokens, text.mask, strict=True):
        tokens = row[mask][None]
        nats += model(tokens, labels=tokens).loss.item() * (tokens.shape[1] - 1)
    assert score.tokens == 15 + 10 + 7
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / 32), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 140, rel=1e-5)


def test_segmented_scores_every_token_but_the_first(model: PreTrainedModel) -> None:
    text = pieces([40, 33], 40)
    nats = 0.0
    for row, mask in zip(text.tokens, text.mask, strict=True):
        tokens = row[mask]
        for start in range(0, len(tokens), L):
            scores = log_probabilities(model, tokens[start : start + L])
            following = tokens[start + 1 : start + 1 + L]
            nats -= scores[range(len(following)), following].sum().item()
    score = segmented(model, text, L)
    assert score.tokens == 39 + 32
    assert score.nats == pytest.approx(nats, rel=1e-5)


def test_double_shift_is_the_seeds_loop(model: PreTrainedModel) -> None:
    text = pieces([48, 48], 48)
    nats, count = 0.0, 0
    for row in text.tokens:
        for segment in row.split(L):
            loss = model(segment[None, :-1], labels=segment[None, 1:]).loss  # shifts once more
            nats, count = nats + loss.item() * (L - 2), count + L - 2
    score = double_shift(model, text, L)
    assert score.tokens == count
    assert score.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize(("context", "stride"), [(16, 4), (32, 32), (64, 8)])
def test_sliding_scores_each_token_once_with_its_window(
    model: PreTrainedModel, context: int, stride: int
) -> None:
    text = pieces([60], 60)
    tokens = text.tokens[0]
    nats = 0.0
    for target in range(1, 60):
        # The first window that reaches the target's predecessor.
        start = next(s for s in range(0, 60, stride) if s + context >= min(target, 60))
        scores = log_probabilities(model, tokens[start:target])
        nats -= scores[-1, tokens[target]].item()
    score = sliding(model, text, context, stride)
    assert score.tokens == 59
    assert score.nats == pytest.approx(nats, rel=1e-5)


def test_a_uniform_model_has_perplexity_of_its_vocabulary(model: PreTrainedModel) -> None:
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    text = pieces([32, 32], 32)
    for score in (
        segmented(model, text, L),
        double_shift(model, text, L),
        sliding(model, text, 32, 8),
    ):
        assert score.perplexity == pytest.approx(300, rel=1e-5)


def test_memory_off_is_every_segment_by_itself(model: PreTrainedModel) -> None:
    torch.manual_seed(1)
    retrofit(model, "parallel", layers=[0, 1], segment_length=L, alpha=1.0)
    text = pieces([48, 48], 48)
    off, on = segmented(model, text, L, memory=False), segmented(model, text, L)
    assert off.nats != pytest.approx(on.nats, rel=1e-6)
    nats = 0.0
    for row in text.tokens:
        for start in range(0, 48, L):
            scores = log_probabilities(model, row[start : start + L])
            following = row[start + 1 : start + 1 + L]
            nats -= scores[range(len(following)), following].sum().item()
    assert off.nats == pytest.approx(nats, rel=1e-5)


def test_chunked_cross_entropy_has_the_whole_ones_values_and_gradients() -> None:
    head = torch.nn.Linear(6, 11, bias=False)
    hidden = torch.randn(2, CHUNK // 2 + 7, 6, requires_grad=True)
    targets = torch.randint(11, hidden.shape[:2])
    targets[0, :5] = -100
    whole = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    ours = cross_entropy(hidden, head, targets)
    torch.testing.assert_close(ours.flatten(), whole)
    ours.sum().backward()
    ours_grad, hidden.grad = hidden.grad, None
    whole.sum().backward()
    torch.testing.assert_close(ours_grad, hidden.grad)


def test_chunked_cross_entropy_in_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 300)
    hidden = torch.randn(1, CHUNK + 9, 64, requires_grad=True)
    targets = torch.randint(300, hidden.shape[:2])
    exact = cross_entropy(hidden, head, targets)
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    with torch.autocast("cpu", torch.bfloat16):
        losses = cross_entropy(hidden, head, targets)
    (got,) = torch.autograd.grad(losses.sum(), hidden)
    assert losses.dtype == got.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(got, wanted, rtol=5e-2, atol=2e-2)
