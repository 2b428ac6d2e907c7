"""Streaming memory: each token reads the memory, then is written to it.

M is (D, V) per key-value head. Token j, in order, with its log decay d_j and write strength β_j:

    M ← exp(d_j) M
    linear: M ← M + β_j k_jᵀ v_j                    (arXiv 2006.16236, equation 18)
    delta:  M ← M + β_j k_jᵀ (v_j - k_j M)          (arXiv 2406.06484; decayed: 2412.06464)

Computed in chunks of tokens, see `chunks` and `chunk_scan`: the cost is linear in T. On a GPU
`fla_backend` computes the same, where fla-core is installed.

Shapes: T tokens, B batch, H query heads, G key-value heads (query head h reads the memory of head
h // (H / G)), D key width, V value width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infini.choices import Update
from infini.memory import fla_backend
from infini.memory.buffers import Scratch
from infini.memory.chunk_scan import Saved, scan_backward, scan_forward
from infini.memory.chunks import Chunks, chunk_blocks, view_by_head


class Stream(NamedTuple):
    """Tokens to write, in order. A token of β = 0 and decay 0 leaves the memory as it is."""

    k: Tensor
    """Keys after any feature map, written and, by the delta rule, read: (B, G, T, D)"""
    v: Tensor
    """Values: (B, G, T, V)"""
    beta: Tensor
    """Write strengths, 0 to 1: (B, G, T)"""
    decay: Tensor | None = None
    """Log decays, 0 or less: (B, G, T); None: no decay"""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Stream":
        """Return the stream with `change` applied to all tensors; their tokens are on axis 2."""
        k, v, beta = change(self.k), change(self.v), change(self.beta)
        return Stream(k, v, beta, None if self.decay is None else change(self.decay))

    def masked(self, mask: Tensor) -> "Stream":
        """Return the stream in which masked tokens write nothing.

        Args:
            mask: (B, T), False for those tokens, on any device.
        """
        mask = mask.to(self.k.device)[:, None]
        decay = None if self.decay is None else self.decay.where(mask, 0)
        return self._replace(beta=self.beta.where(mask, 0), decay=decay)


def stream_memory(
    q: Tensor, stream: Stream, memory: Tensor, update: Update = "delta"
) -> tuple[Tensor, Tensor]:
    """Read the memory with query t, then write token t of the stream, for every t.

    Behind a window of n tokens, query t goes with token t - n + 1, which is in the window for the
    last time.

    Args:
        q: Queries, (B, H, T, D).
        stream: T tokens to write. Shapes are the caller's to check.
        memory: Memory before the first token, (B, G, D, V), of float32 at least; its type is that
            of the computation.
        update: Write rule.

    Returns:
        The reads, (B, H, T, V), of the values' type, and the memory after the last token.
    """
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[2] == 1:
            return _one_token(q, stream, memory, update)
        if fla_backend.is_usable(memory):
            return fla_backend.stream_memory_fla(q, stream, memory, update)
        out: tuple[Tensor, Tensor] = _StreamMemory.apply(update == "delta", q, memory, *stream)
    return out


def _one_token(q: Tensor, stream: Stream, memory: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """`stream_memory` of one token, for generation: the rule itself, with a tenth of the calls."""
    groups = memory.shape[1]
    queries = q.to(memory.dtype).view(len(q), groups, -1, q.shape[-1])  # (B, G, H/G, D)
    reads = (queries @ memory).view(*q.shape[:3], -1)  # (B, H, 1, V)
    k, v, beta, decay = stream.map(lambda x: x.to(memory.dtype))
    if decay is not None:
        memory = decay[..., None].exp() * memory
    v_new = v - k @ memory if update == "delta" else v  # (B, G, 1, V)
    return reads.to(stream.v.dtype), memory + (beta[..., None] * k).mT @ v_new


class _StreamMemory(torch.autograd.Function):
    """`stream_memory` with its backward pass; stream: its fields."""

    @staticmethod
    def forward(
        ctx: Any, is_delta: bool, q: Tensor, memory: Tensor, *stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        k, v, beta, decay = stream
        ctx.is_delta, ctx.value_width, ctx.value_type = is_delta, v.shape[-1], v.dtype
        out = _empty_tokens_first(q, ctx.value_width, ctx.value_type)
        scratch, current = Scratch(memory), memory.flatten(0, 1).clone()  # (B·G, D, V)
        saved: list[Tensor | None] = []
        for block in chunk_blocks(q, k, ctx.value_width):
            chunks = Chunks.from_tokens(*block.views(q, k, beta, decay), is_delta, scratch)
            result = scan_forward(chunks, block.view(v), current)
            _copy_by_head(result.reads, block.view(out))
            if any(ctx.needs_input_grad):
                saved += [current, result.v_new, result.inverse]
            current = result.memory
        ctx.save_for_backward(q, k, beta, decay, *saved)
        return out, current.reshape(memory.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_memory: Tensor) -> tuple[Tensor | None, ...]:
        q, k, beta, decay, *saved = ctx.saved_tensors
        d_q, d_k, d_beta = (torch.empty_like(x) for x in (q, k, beta))
        d_v = _empty_tokens_first(k, ctx.value_width, ctx.value_type)
        d_decay = torch.empty_like(decay) if ctx.needs_input_grad[-1] else None
        scratch, d_current = Scratch(d_memory), d_memory.flatten(0, 1)
        with torch.autocast(d_out.device.type, enabled=False):
            for block in reversed(chunk_blocks(q, k, ctx.value_width)):
                *saved, memory, v_new, inverse = saved
                chunks = Chunks.from_tokens(*block.views(q, k, beta, decay), ctx.is_delta, scratch)
                d_reads = scratch("∂ reads", *chunks.queries.shape[:2], ctx.value_width)
                d_out_block = block.view(d_out)
                view_by_head(d_reads, d_out_block.shape).copy_(d_out_block)
                result = scan_backward(
                    chunks, Saved(memory, v_new, inverse), d_reads, d_current, d_decay is not None
                )
                d_current = result.memory
                _copy_by_head(result.queries, block.view(d_q))
                _copy_by_head(result.v, block.view(d_v))
                if d_decay is not None and result.decay is not None:
                    d_decay_block = block.view(d_decay)
                    d_decay_block.copy_(result.decay.view(d_decay_block.shape))
                d_k_block, d_beta_block = chunks.keys_backward(
                    block.view(k), block.view(beta), result.write_keys, result.read_keys
                )
                block.view(d_k).copy_(d_k_block)
                block.view(d_beta).copy_(d_beta_block)
        return None, d_q, d_current.reshape(d_memory.shape), d_k, d_v, d_beta, d_decay


def _empty_tokens_first(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return an empty (B, H, T, width) for a `like` of (B, H, T, ·), laid out as (B, T, H, width).

    Projections give and take that layout: no copy there.
    """
    batch, heads, tokens, _ = like.shape
    return like.new_empty(batch, tokens, heads, width, dtype=dtype).transpose(1, 2)


def _copy_by_head(x: Tensor, out: Tensor) -> None:
    """Copy x, (N, H/G·c, ·), to `out`, a block's view of (n, B, H, c, ·)."""
    out.copy_(view_by_head(x, out.shape))
