"""Scan over whole segments: read, write and gate the memory in one differentiable function.

Both passes go over blocks of segments: `reads` and `writes` have a block's forward and backward,
`buffers` its scratch memory. The feature maps are computed again in the backward pass rather
than saved. Values and z are one matrix, [M | z | 0]: one product reads the numerator and the
denominator.

Shapes: S segments, B batch, H query heads, G key-value heads (query head h reads the memory of
head h // (H / G)), Lq queries and Lk keys a segment, D key width, V value width, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infini.choices import Update
from infini.memory.buffers import Buffers
from infini.memory.features import derivative_
from infini.memory.reads import LocalMix, read_block, read_block_backward
from infini.memory.writes import write_block, write_block_backward


@dataclass(frozen=True)
class SegmentPlan:
    """Number of segments of a call, and their write rule."""

    segments: int
    """S, at least 1"""
    complete: Tensor
    """Number of segments in the memory that is returned: (B,) int64, on the CPU"""
    update: Update
    """Write rule"""


def read_and_write(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor, plan: SegmentPlan, mix: LocalMix | None = None
) -> tuple[Tensor, Tensor]:
    """Read the memory with every segment, then write the segment to it, for all in order.

    arXiv 2404.07143, equations 3-6.

    Args:
        q: Queries before σ, (B, H, S·Lq, D).
        k: Keys before σ, (B, G, S·Lk, D).
        v: Values, (B, G, S·Lk, V).
        memory: Memory before the first segment, [M | z | 0]: (B, G, D, C).
        plan: Segments.
        mix: Local attention and gate; None: no local attention.

    Returns:
        The reads, (B, H, S·Lq, V), zero while the memory is empty, and the memory. With `mix`:
        g · read + (1 - g) · local, and local alone while the memory is empty.
    """
    with torch.autocast(q.device.type, enabled=False):
        out: tuple[Tensor, Tensor] = _ReadAndWrite.apply(plan, q, k, v, memory, *(mix or ()))
    return out


def _by_segment(x: Tensor, segments: int) -> Tensor:
    """(B, H, S·L, D) → (S, B, H, L, D), a view."""
    return x.unflatten(2, (segments, -1)).permute(2, 0, 1, 3, 4)


def _views(
    inputs: Sequence[Tensor], segments: int
) -> tuple[Tensor, Tensor, Tensor, LocalMix | None]:
    """View the inputs q, k, v[, local, gate], or their gradients, by segment."""
    q, k, v, *mix = inputs
    q, k, v = (_by_segment(x, segments) for x in (q, k, v))
    return q, k, v, (LocalMix(_by_segment(mix[0], segments), mix[1]) if mix else None)


class _ReadAndWrite(torch.autograd.Function):
    """`read_and_write` with its backward pass; mix: local and gate, or nothing."""

    @staticmethod
    def forward(
        ctx: Any, plan: SegmentPlan, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, *mix: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = (q, k, v, *mix)
        out = torch.empty_like(mix[0]) if mix else v.new_empty(*q.shape[:3], v.shape[-1])
        memories = _forward(plan, inputs, memory, out)
        ctx.plan = plan
        ctx.save_for_backward(*inputs, memories)
        last = plan.complete.to(memory.device)
        return out, memories[last, torch.arange(len(last), device=memory.device)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_memory: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, memories = ctx.saved_tensors
        with torch.autocast(d_out.device.type, enabled=False):
            (d_q, d_k, d_v, *d_mix), d_start = _backward(
                ctx.plan, inputs, memories, d_out, d_memory
            )
        return None, d_q, d_k, d_v, d_start, *d_mix


def _forward(plan: SegmentPlan, inputs: Sequence[Tensor], memory: Tensor, out: Tensor) -> Tensor:
    """Write to out; return the memory before every segment and at the end, (S + 1, B, G, D, C)."""
    q, k, v, mix = _views(inputs, plan.segments)
    out = _by_segment(out, plan.segments)
    buffers = Buffers(q, k, v, memory)
    memories = memory.new_empty(plan.segments + 1, *memory.shape)
    memories[0] = memory
    for block in buffers.blocks():
        keys = buffers.map_keys(k[block])
        writes = keys.mT @ buffers.extend_values(v[block])  # (n, B, G, D, C)
        around = memories[block.start : block.stop + 1]
        write_block(around, keys, writes, plan.update, buffers.value_width)
        block_mix = None if mix is None else mix.block(block)
        read_block(buffers, q[block], memories[block], block_mix, out[block])
    return memories


def _backward(
    plan: SegmentPlan, inputs: Sequence[Tensor], memories: Tensor, d_out: Tensor, d_memory: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return ∂ of the inputs, and ∂ of the memory before the first segment, (B, G, D, C)."""
    q, k, v, mix = _views(inputs, plan.segments)
    # Whole tensors are returned, not views: autograd adds other gradients to them in place.
    gradients = [torch.empty_like(x) for x in inputs]
    if mix is not None:
        gradients[-1] = torch.zeros_like(mix.gate, dtype=memories.dtype)  # a sum over the blocks
    d_q, d_k, d_v, d_mix = _views(gradients, plan.segments)
    d_out = _by_segment(d_out, plan.segments)
    buffers = Buffers(q, k, v, memories[0])
    width = buffers.value_width
    d_current = torch.zeros_like(memories[0])  # ∂ of the memory after the block
    _add_final_gradient(d_current[None], d_memory, plan.complete, plan.segments)
    for block in reversed(buffers.blocks()):
        before = memories[block]
        block_mix, d_block_mix = (None if m is None else m.block(block) for m in (mix, d_mix))
        d_before = read_block_backward(
            buffers, q[block], before, block_mix, d_out[block], d_q[block], d_block_mix
        )
        _add_final_gradient(d_before, d_memory, plan.complete, block.start)
        keys = buffers.map_keys(k[block])
        values = buffers.extend_values(v[block])
        d_writes, d_erased_keys = write_block_backward(
            before, keys, d_before, d_current, plan.update, width
        )
        d_v[block] = keys @ d_writes[..., :width]
        d_keys = values @ d_writes.mT
        if d_erased_keys is not None:
            d_keys += d_erased_keys
        torch.mul(d_keys, derivative_(keys), out=d_k[block])
    if mix is not None:
        gradients[-1] = gradients[-1].to(mix.gate.dtype)
    return gradients, d_current


def _add_final_gradient(d_memories: Tensor, d_memory: Tensor, complete: Tensor, start: int) -> None:
    """Add ∂ of the returned memory: a sample's is the memory before segment `complete`.

    d_memories: ∂ of the memories before the segments from `start` on, (n, B, G, D, C).
    """
    for sample, segment in enumerate(complete.tolist()):
        if start <= segment < start + len(d_memories):
            d_memories[segment - start, sample] += d_memory[sample]
