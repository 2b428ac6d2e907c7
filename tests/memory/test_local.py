"""Attention within a segment against the plain loops, and queries at any of its slots."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infini.memory.local import (
    LINEAR_CHUNK_SIZE,
    RotaryEmbedding,
    alibi_slopes,
    apply_rotary,
    linear_attention,
    softmax_attention,
)
from infini.memory.reference import local_loop, rotary_loop, sigma

HEADS, GROUPS, D = 4, 2, 4


def inputs(rows: int, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(rows, heads, tokens, D, generator=generator, dtype=torch.float64)
        for heads in (HEADS, GROUPS, GROUPS)
    ]


@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
def test_linear_attention_equals_loop(slopes: Tensor | None) -> None:
    q, k, v = (torch.randn(1, h, 150, 4, dtype=torch.float64) for h in (HEADS, GROUPS, GROUPS))
    out = linear_attention(q, k, v, None, slopes)
    for h in range(HEADS):
        slope = 0.0 if slopes is None else slopes[h].item()
        expected = local_loop(q[0, h], k[0, h // 2], v[0, h // 2], 150, "linear", slope, 1.0)
        torch.testing.assert_close(out[0, h], expected)
    assert sigma(torch.tensor(0.0)) == 1


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
def test_softmax_attention_equals_loop(slopes: Tensor | None, scale: float | None) -> None:
    q, k, v = inputs(1, 11)
    out = softmax_attention(q, k, v, None, scale, slopes)
    for h in range(HEADS):
        slope = 0.0 if slopes is None else slopes[h].item()
        factor = 1 / math.sqrt(D) if scale is None else scale
        expected = local_loop(q[0, h], k[0, h // 2], v[0, h // 2], 11, "softmax", slope, factor)
        torch.testing.assert_close(out[0, h], expected)


@pytest.mark.parametrize("attention", [softmax_attention, linear_attention])
@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
def test_local_attention_at_slots_equals_whole_segment(
    attention: Callable[..., Tensor], slopes: Tensor | None
) -> None:
    q, k, v = inputs(2, LINEAR_CHUNK_SIZE + 9)
    whole = attention(q, k, v, None, slopes=slopes)
    slots = torch.tensor([[3, 4, 5], [70, 71, 72]])  # of each row
    index = slots[:, None, :, None].expand(-1, HEADS, -1, D)
    out = attention(q.gather(2, index), k, v, slots, slopes=slopes)
    torch.testing.assert_close(out, whole.gather(2, index))
    same = attention(q[:, :, 3:6], k, v, slots[:1], slopes=slopes)  # one row of slots for all
    torch.testing.assert_close(same, whole[:, :, 3:6])


def test_alibi_slopes_of_eight_heads() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]


def test_apply_rotary_leaves_further_dimensions() -> None:
    q, _, _ = inputs(1, 11)
    cos, sin = RotaryEmbedding(2)(q, torch.arange(11)[None])
    out = apply_rotary(q, cos, sin)
    assert torch.equal(out[..., 2:], q[..., 2:])
    expected = rotary_loop(q[0, 1, :, :2], 11)
    torch.testing.assert_close(out[0, 1, :, :2], expected, rtol=1e-5, atol=1e-5)
