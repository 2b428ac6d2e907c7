"""Targets of tokens, and cross-entropy through a head against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from infini.evaluation.losses import (
    LOGIT_CHUNK,
    UNSCORED,
    cross_entropy,
    next_token,
    token_after_next,
)
from infini.model.architectures import OutputHead
from toy import some_pieces


def test_next_token_targets_end_with_the_text() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = [[6, 7, 8, UNSCORED], [6, UNSCORED, UNSCORED, UNSCORED]]
    assert next_token(tokens, mask).tolist() == expected


@pytest.mark.parametrize("length", [3, 4, 16])
def test_token_after_next_targets_stay_in_the_segment(length: int) -> None:
    text = some_pieces([13, 6, 1], 13)
    targets = token_after_next(text.tokens, text.mask, length)
    for row, (tokens, n) in enumerate(zip(text.tokens.tolist(), (13, 6, 1), strict=True)):
        for i in range(13):
            same = i // length == (i + 2) // length
            expected = tokens[i + 2] if i + 2 < n and same else UNSCORED
            assert targets[row, i] == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_cross_entropy_matches_torch(bias: bool, scale: float, softcap: float | None) -> None:
    torch.manual_seed(0)
    own = torch.nn.Linear(6, 11, bias=bias).requires_grad_(False)
    head = OutputHead(own.weight, own.bias, scale, softcap)
    hidden = torch.randn(2, LOGIT_CHUNK // 2 + 7, 6, requires_grad=True)
    targets = torch.randint(11, hidden.shape[:2])
    targets[0, :5] = UNSCORED
    logits = scale * own(hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    torch.testing.assert_close(head(hidden), logits)
    whole = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    ours = cross_entropy(hidden, head, targets)
    torch.testing.assert_close(ours.flatten(), whole)
    weights = torch.rand_like(whole)  # every token's own share of the gradient
    (ours_grad,) = torch.autograd.grad((ours.flatten() * weights).sum(), hidden)
    (whole_grad,) = torch.autograd.grad((whole * weights).sum(), hidden)
    torch.testing.assert_close(ours_grad, whole_grad)


def test_cross_entropy_in_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    own = torch.nn.Linear(64, 300)
    head = OutputHead(own.weight.detach(), own.bias.detach())
    hidden = torch.randn(1, LOGIT_CHUNK + 9, 64, requires_grad=True)
    targets = torch.randint(300, hidden.shape[:2])
    exact = cross_entropy(hidden, head, targets)
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    with torch.autocast("cpu", torch.bfloat16):
        losses = cross_entropy(hidden, head, targets)
    (got,) = torch.autograd.grad(losses.sum(), hidden)
    assert losses.dtype == got.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(got, wanted, rtol=5e-2, atol=2e-2)
