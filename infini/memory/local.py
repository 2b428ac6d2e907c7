"""Attention within a segment: softmax, or linear in chunks; positions none, ALiBi or rotary.

Shapes: N segments, H query heads, G key-value heads, t queries, n keys, D and V widths.
`slots`: positions of the queries in their segment, (N or 1, t); None: 0 to t - 1, and t = n.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory.features import EPSILON, feature_map

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # Hugging Face's rotary embedding

LINEAR_CHUNK_SIZE = 64  # queries of linear attention that share one matrix of weights


def alibi_slopes(num_heads: int) -> Tensor:
    """Return ALiBi's slopes, a geometric series from 2^(-8/H) to 2^-8 (arXiv 2108.12409): (H,)."""
    return torch.tensor([2 ** (-8 * (h + 1) / num_heads) for h in range(num_heads)])


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor | None,
    scale: float | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Compute causal softmax attention within segments.

    Args:
        q: (N, H, t, D).
        k: (N, G, n, D).
        v: (N, G, n, V).
        slots: Positions of the queries in their segment.
        scale: Of the scores; None: 1/√D.
        slopes: ALiBi's, (H,), subtracted times the distance; None: no ALiBi.

    Returns:
        (N, H, t, V).
    """
    grouped = q.shape[1] != k.shape[1]
    if slots is None and slopes is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    distance = _distance(q, k, slots)[:, None]  # (N or 1, 1, t, n)
    rates = q.new_zeros(1) if slopes is None else slopes.to(q)
    bias = (-rates[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, slots: Tensor | None, slopes: Tensor | None = None
) -> Tensor:
    """Compute causal linear attention within segments: weights σ(q)·σ(k) (arXiv 2006.16236).

    Computed in chunks of queries: weights within a chunk, sums of σ(k)ᵀv for the chunks before.

    Args:
        q: (N, H, t, D).
        k: (N, G, n, D).
        v: (N, G, n, V).
        slots: Positions of the queries in their segment.
        slopes: (H,), weights are multiplied by exp(-slope · distance); None: no ALiBi.

    Returns:
        (N, H, t, V).
    """
    groups = q.shape[1] // k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        queries = feature_map(q)
        keys = feature_map(k).repeat_interleave(groups, 1)
        values = v.to(keys.dtype).repeat_interleave(groups, 1)
        rates = queries.new_zeros(q.shape[1]) if slopes is None else slopes.to(queries)
        values = F.pad(values, (0, 1), value=1.0)  # the last column sums the weights
        if slots is None:
            sums = _chunked(queries, keys, values, rates)
        else:
            distance = _distance(q, k, slots)[:, None]  # (N or 1, 1, t, n)
            decay = torch.exp(-rates[:, None, None] * distance.clamp_min(0)) * (distance >= 0)
            sums = (queries @ keys.mT * decay) @ values
    return (sums[..., :-1] / sums[..., -1:].clamp_min(EPSILON)).to(v.dtype)


def _chunked(queries: Tensor, keys: Tensor, values: Tensor, rates: Tensor) -> Tensor:
    """Return Σ_{j ≤ i} σ(q_i)·σ(k_j) exp(-rate · (i - j)) v_j: (N, H, t, V)."""
    tokens = queries.shape[2]
    chunk = min(LINEAR_CHUNK_SIZE, tokens)
    queries, keys, values = (
        F.pad(x, (0, 0, 0, -tokens % chunk)).unflatten(2, (-1, chunk))
        for x in (queries, keys, values)
    )  # (N, H, t, D) → (N, H, K, c, D): K chunks of c
    token = torch.arange(chunk, device=queries.device, dtype=queries.dtype)
    rate = rates[:, None, None, None]
    within = torch.exp(-rate * (token[:, None] - token).clamp_min(0)).tril()  # (H, 1, c, c)
    out = (queries @ keys.mT * within) @ values
    # σ(k)ᵀv of every chunk, decayed to its end; summed over the chunks before, decayed since.
    to_end = torch.exp(-rate * (chunk - 1 - token[:, None]))  # (H, 1, c, 1)
    sums = (keys * to_end).mT @ values  # (N, H, K, D, V)
    count = sums.shape[2]
    index = torch.arange(count, device=queries.device, dtype=queries.dtype)
    gap = (index[:, None] - index - 1).clamp_min(0) * chunk
    since = torch.exp(-rates[:, None, None] * gap).tril(-1)  # (H, K, K)
    before = (since @ sums.flatten(3)).view(sums.shape)
    from_start = torch.exp(-rate * (token[:, None] + 1))  # (H, 1, c, 1)
    out = out + (queries * from_start) @ before
    return out.flatten(2, 3)[:, :, :tokens]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (arXiv 2104.09864) to the first R of D, halves paired as in GPT-NeoX.

    Args:
        x: Queries or keys, (N, H, t, D).
        cos: (N or 1, t, R).
        sin: (N or 1, t, R).
    """
    width = cos.shape[-1]
    rotated, rest = x[..., :width], x[..., width:]
    first, second = rotated.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = rotated * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([rotated, rest], -1) if rest.shape[-1] else rotated


class RotaryEmbedding:
    """Rotary embedding of a base without one: cos and sin of position times theta^(-2i/D).

    Args:
        width: Width of a head, D, even.
        theta: Base of the frequencies.
    """

    def __init__(self, width: int, theta: float = 10_000.0):
        self.frequencies = theta ** (-torch.arange(0, width, 2) / width)  # (D/2,)

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cos and sin, (N, t, D) each.

        Args:
            x: Tensor of the type and device wanted.
            position_ids: (N, t).
        """
        angles = position_ids[..., None] * self.frequencies.to(x.device)  # (N, t, D/2)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _distance(q: Tensor, k: Tensor, slots: Tensor | None) -> Tensor:
    """Return the distance from key to query, (N or 1, t, n), negative for later keys."""
    key_slots = torch.arange(k.shape[2], device=q.device)
    slots = key_slots[None] if slots is None else slots
    return slots[:, :, None] - key_slots
