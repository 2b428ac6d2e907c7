"""A memory that is read before each token of a stream and then written with it.

M (D, V) a key-value head. Token j, in this order, with its decay d_j and its strength β_j:

    M ← exp(d_j) M
    linear: M ← M + β_j k_jᵀ v_j                    (arXiv 2006.16236, equation 18)
    delta:  M ← M + β_j k_jᵀ (v_j - k_j M)          (arXiv 2406.06484; decayed: 2412.06464)

Computed in chunks of tokens, see `chunks`; T tokens cost T, whatever is in the memory. On a GPU by
the kernels of `gpu`, where they are installed.

Shapes: T tokens, B batch, H query heads, G key-value heads (query head h reads the memory of head
h // (H / G)), D key width, V value width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infini.choices import Update
from infini.memory import fla_backend as gpu
from infini.memory.buffers import Scratch
from infini.memory.chunk_scan import Kept, backward, forward
from infini.memory.chunks import Chunks, blocks, by_head


class Stream(NamedTuple):
    """Tokens to be written, in order. One with β and decay 0 leaves the memory as it is."""

    k: Tensor
    """As written and, by the delta rule, read: after any feature map: (B, G, T, D)"""
    v: Tensor
    """(B, G, T, V)"""
    beta: Tensor
    """Strength of the write, 0 to 1: (B, G, T)"""
    decay: Tensor | None = None
    """Logarithm, 0 or less: (B, G, T); None: nothing is forgotten"""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Stream":
        """All its tensors as `change` makes them, their tokens along axis 2."""
        k, v, beta = change(self.k), change(self.v), change(self.beta)
        return Stream(k, v, beta, None if self.decay is None else change(self.decay))

    def only(self, real: Tensor) -> "Stream":
        """The other tokens write nothing; real: (B, T), on any device."""
        real = real.to(self.k.device)[:, None]
        decay = None if self.decay is None else self.decay.where(real, 0)
        return self._replace(beta=self.beta.where(real, 0), decay=decay)


def stream_memory(
    q: Tensor, stream: Stream, memory: Tensor, update: Update = "delta"
) -> tuple[Tensor, Tensor]:
    """Query t reads the memory as it is before token t of the stream is written.

    q: (B, H, T, D); stream: T tokens; memory: (B, G, D, V), of float32 at least, the type of the
    computation; update: "delta" or "linear", the rules above. Shapes are the caller's to check.
    Returns the reads, (B, H, T, V), of the values' type, and the memory after the last token. So
    for a window of n tokens whose first are t - n + 1: query t beside that token, which is in the
    window for the last time.
    """
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[2] == 1:
            return _one_token(q, stream, memory, update)
        if gpu.usable(memory):
            return gpu.by_kernels(q, stream, memory, update)
        out: tuple[Tensor, Tensor] = _StreamMemory.apply(update == "delta", q, memory, *stream)
    return out


def _one_token(q: Tensor, stream: Stream, memory: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """`stream_memory` of one token, for generation: the rule itself, a tenth of the calls."""
    groups = memory.shape[1]
    queries = q.to(memory.dtype).view(len(q), groups, -1, q.shape[-1])  # (B, G, H/G, D)
    reads = (queries @ memory).view(*q.shape[:3], -1)  # (B, H, 1, V)
    k, v, beta, decay = stream.map(lambda x: x.to(memory.dtype))
    if decay is not None:
        memory = decay[..., None].exp() * memory
    errors = v - k @ memory if update == "delta" else v  # (B, G, 1, V)
    return reads.to(stream.v.dtype), memory + (beta[..., None] * k).mT @ errors


class _StreamMemory(torch.autograd.Function):
    """`stream_memory` with its backward pass; erases: by the delta rule; stream: its fields."""

    @staticmethod
    def forward(
        ctx: Any, erases: bool, q: Tensor, memory: Tensor, *stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        k, v, beta, decay = stream
        ctx.erases, ctx.value_width, ctx.value_type = erases, v.shape[-1], v.dtype
        out = _tokens_first(q, ctx.value_width, ctx.value_type)
        scratch, current = Scratch(memory), memory.flatten(0, 1).clone()  # (B·G, D, V)
        kept: list[Tensor | None] = []
        for block in blocks(q, k, ctx.value_width):
            chunks = Chunks.of(*block.of_each(q, k, beta, decay), erases, scratch)
            done = forward(chunks, block.of(v), current)
            _put(done.reads, block.of(out))
            if any(ctx.needs_input_grad):
                kept += [current, done.errors, done.inverse]
            current = done.memory
        ctx.save_for_backward(q, k, beta, decay, *kept)
        return out, current.reshape(memory.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_memory: Tensor) -> tuple[Tensor | None, ...]:
        q, k, beta, decay, *kept = ctx.saved_tensors
        d_q, d_k, d_beta = (torch.empty_like(x) for x in (q, k, beta))
        d_v = _tokens_first(k, ctx.value_width, ctx.value_type)
        d_decay = torch.empty_like(decay) if ctx.needs_input_grad[-1] else None
        scratch, carry = Scratch(d_memory), d_memory.flatten(0, 1)
        with torch.autocast(d_out.device.type, enabled=False):
            for block in reversed(blocks(q, k, ctx.value_width)):
                *kept, before, errors, inverse = kept
                chunks = Chunks.of(*block.of_each(q, k, beta, decay), ctx.erases, scratch)
                d_reads = scratch("∂ reads", *chunks.queries.shape[:2], ctx.value_width)
                here = block.of(d_out)
                by_head(d_reads, here.shape).copy_(here)
                done = backward(
                    chunks, Kept(before, errors, inverse), d_reads, carry, d_decay is not None
                )
                carry = done.memory
                _put(done.queries, block.of(d_q))
                _put(done.v, block.of(d_v))
                if d_decay is not None and done.decay is not None:
                    here = block.of(d_decay)
                    here.copy_(done.decay.view(here.shape))
                keys, strengths = chunks.keys_back(
                    block.of(k), block.of(beta), done.writers, done.erasers
                )
                block.of(d_k).copy_(keys)
                block.of(d_beta).copy_(strengths)
        return None, d_q, carry.reshape(d_memory.shape), d_k, d_v, d_beta, d_decay


def _tokens_first(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """An empty (B, H, T, width) for a `like` of (B, H, T, ·), laid out as (B, T, H, width).

    Projections give and take that layout: no copy there.
    """
    batch, heads, tokens, _ = like.shape
    return like.new_empty(batch, tokens, heads, width, dtype=dtype).transpose(1, 2)


def _put(x: Tensor, into: Tensor) -> None:
    """x, (N, H/G·c, ·), to a block's place, (n, B, H, c, ·)."""
    into.copy_(by_head(x, into.shape))
