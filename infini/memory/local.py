"""Attention within a segment: softmax, or linear in chunks; positions none, ALiBi or rotary.

Shapes: N segments, H query heads, G key-value heads, t queries, n keys, D and V widths.
`at`: the queries' slots in their segment, (N or 1, t); None: slots 0 to t - 1, and t = n.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory.features import EPSILON, feature_map

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # Hugging Face's rotary embedding

CHUNK = 64  # queries of the linear form whose (CHUNK, CHUNK) weights exist


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope a head, a geometric series from 2^(-8/H) to 2^-8 (arXiv 2108.12409); (H,)."""
    return torch.tensor([2 ** (-8 * (h + 1) / num_heads) for h in range(num_heads)])


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Tensor | None,
    scale: float | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention; slopes: (H,), ALiBi's, subtracted times the distance."""
    grouped = q.shape[1] != k.shape[1]
    if at is None and slopes is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    distance = _distance(q, k, at)[:, None]  # (N or 1, 1, t, n)
    rates = q.new_zeros(1) if slopes is None else slopes.to(q)
    bias = (-rates[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Tensor | None, slopes: Tensor | None = None
) -> Tensor:
    """Causal linear attention, weights σ(q)·σ(k), with ALiBi times exp(-slope · distance).

    Chunks of queries: weights within a chunk, sums of σ(k)ᵀv for the chunks before it.
    """
    groups = q.shape[1] // k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        queries = feature_map(q)
        keys = feature_map(k).repeat_interleave(groups, 1)
        values = v.to(keys.dtype).repeat_interleave(groups, 1)
        rates = queries.new_zeros(q.shape[1]) if slopes is None else slopes.to(queries)
        values = F.pad(values, (0, 1), value=1.0)  # the last column sums the weights
        if at is None:
            sums = _chunked(queries, keys, values, rates)
        else:
            distance = _distance(q, k, at)[:, None]  # (N or 1, 1, t, n)
            decay = torch.exp(-rates[:, None, None] * distance.clamp_min(0)) * (distance >= 0)
            sums = (queries @ keys.mT * decay) @ values
    return (sums[..., :-1] / sums[..., -1:].clamp_min(EPSILON)).to(v.dtype)


def _chunked(queries: Tensor, keys: Tensor, values: Tensor, rates: Tensor) -> Tensor:
    """Σ over keys not after the query of σ(q)·σ(k) exp(-rate · distance) v; (N, H, t, V)."""
    tokens = queries.shape[2]
    chunk = min(CHUNK, tokens)
    queries, keys, values = (
        F.pad(x, (0, 0, 0, -tokens % chunk)).unflatten(2, (-1, chunk))
        for x in (queries, keys, values)
    )  # (N, H, t, D) → (N, H, K, c, D): K chunks of c
    at = torch.arange(chunk, device=queries.device, dtype=queries.dtype)
    rate = rates[:, None, None, None]
    within = torch.exp(-rate * (at[:, None] - at).clamp_min(0)).tril()  # (H, 1, c, c)
    out = (queries @ keys.mT * within) @ values
    # σ(k)ᵀv of every chunk, decayed to its end; summed over the chunks before, decayed since.
    to_end = torch.exp(-rate * (chunk - 1 - at[:, None]))  # (H, 1, c, 1)
    sums = (keys * to_end).mT @ values  # (N, H, K, D, V)
    count = sums.shape[2]
    index = torch.arange(count, device=queries.device, dtype=queries.dtype)
    gap = (index[:, None] - index - 1).clamp_min(0) * chunk
    since = torch.exp(-rates[:, None, None] * gap).tril(-1)  # (H, K, K)
    before = (since @ sums.flatten(3)).view(sums.shape)
    from_start = torch.exp(-rate * (at[:, None] + 1))  # (H, 1, c, 1)
    out = out + (queries * from_start) @ before
    return out.flatten(2, 3)[:, :, :tokens]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) on the first R of D, halves paired as in GPT-NeoX.

    x: (N, H, t, D); cos, sin: (N or 1, t, R).
    """
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = turned * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


class RotaryEmbedding:
    """cos and sin of position times 10000^(-2i/D): what a base without its own is given."""

    def __init__(self, width: int, theta: float = 10_000.0):
        self.frequencies = theta ** (-torch.arange(0, width, 2) / width)  # (D/2,)

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x: of the type and device wanted; position_ids: (N, t). Returns two of (N, t, D)."""
        angles = position_ids[..., None] * self.frequencies.to(x.device)  # (N, t, D/2)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _distance(q: Tensor, k: Tensor, at: Tensor | None) -> Tensor:
    """How many tokens a key lies before a query: (N or 1, t, n), negative where it lies after."""
    slots = torch.arange(k.shape[2], device=q.device)
    at = slots[None] if at is None else at
    return at[:, :, None] - slots
