"""InfiniAttention: local attention within a segment, a compressive memory across segments.

arXiv 2404.07143, equations 3-6. One gate a head mixes the two; while the memory is
empty the local output passes undiluted.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.memory import (
    EPSILON,
    Frames,
    MemoryState,
    Update,
    make_frames,
    merge_frames,
    read_and_write,
)

Local = Literal["softmax", "linear"]
Position = Literal["none", "alibi"]


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope a head, a geometric series from 2^(-8/H) to 2^-8 (arXiv 2108.12409); (H,)."""
    return torch.tensor([2 ** (-8 * (h + 1) / num_heads) for h in range(num_heads)])


class InfiniAttention(nn.Module):
    """Self-attention whose keys and values outlive their segment in a constant-size memory."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        segment_length: int = 256,
        update: Update = "delta",
        local: Local = "softmax",
        position: Position = "none",
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.segment_length = segment_length
        self.update: Update = update
        self.local: Local = local
        self.position: Position = position
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.beta = nn.Parameter(torch.zeros(num_heads))  # gate = sigmoid(β)

    def forward(
        self,
        hidden_states: Tensor,
        state: MemoryState | None = None,
        mask: Tensor | None = None,
        segment_length: int | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """hidden_states: (B, T, hidden_size), mask: (B, T), False on padding after the text.

        Returns (B, T, hidden_size) and the state after the last token. `segment_length`
        overrides the layer's own for this call.
        """
        q, k, v = (
            proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        frames = make_frames(q, k, v, segment_length or self.segment_length, state, mask)
        local = self._linear(frames) if self.local == "linear" else self._softmax(frames)
        reads, written, state = read_and_write(frames, self.update, state)
        gate = torch.sigmoid(self.beta)[:, None] * written[:, None]  # (B, H, S)
        mixed = torch.lerp(local, reads.to(local.dtype), gate[..., None, None])
        heads = merge_frames(mixed, frames)  # (B, H, T, D)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), state

    def _softmax(self, frames: Frames) -> Tensor:
        """Causal softmax attention within every segment; (B, H, S, L, D)."""
        batch = frames.q.shape[0]
        q, k, v = (
            x.transpose(1, 2).flatten(0, 1)  # (B*S, H, L, D)
            for x in (frames.q, frames.k, frames.v)
        )
        if self.position == "alibi":
            bias = -alibi_slopes(self.num_heads).to(q)[:, None, None] * _distances(frames)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.masked_fill(~_causal(frames), -math.inf)
            )
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.unflatten(0, (batch, -1)).transpose(1, 2)  # (B, H, S, L, D)

    def _linear(self, frames: Frames) -> Tensor:
        """Causal linear attention within every segment, weights σ(q)σ(k)ᵀ; (B, H, S, L, D)."""
        weights = frames.queries @ frames.keys.transpose(-1, -2)  # (B, H, S, L, L)
        decay = _causal(frames).to(weights.dtype)  # (L, L)
        if self.position == "alibi":
            slopes = alibi_slopes(self.num_heads).to(weights)[:, None, None]
            decay = (decay * torch.exp(-slopes * _distances(frames)))[:, None]  # (H, 1, L, L)
        weights = weights * decay
        total = weights.sum(-1, keepdim=True).clamp_min(EPSILON)  # zero on padding
        out = weights @ frames.v.to(weights.dtype) / total
        return out.to(frames.v.dtype)


def _causal(frames: Frames) -> Tensor:
    """Which key a query may see: (L, L), bool."""
    length = frames.q.shape[3]
    return torch.ones(length, length, dtype=torch.bool, device=frames.q.device).tril()


def _distances(frames: Frames) -> Tensor:
    """How many tokens a key lies before a query: (L, L), zero where it lies after."""
    at = torch.arange(frames.q.shape[3], device=frames.q.device)
    return (at[:, None] - at).clamp_min(0)
