"""Reads of a block of segments: the read, its mix with local attention, and the backward pass.

arXiv 2404.07143, equations 3 and 6: read = σ(Q)M / σ(Q)z, out = g · read + (1 - g) · local.

Shapes: n segments of a block, B batch, H query heads, G key-value heads, Lq queries a segment,
D key width, V value width, C columns of the memory, [M | z | 0].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.buffers import Buffers
from infini.memory.features import EPSILON, derivative_


class LocalMix(NamedTuple):
    """Local attention and the gate that mixes reads with it, or their gradients."""

    local: Tensor
    """Attention within the segments, shaped like the reads"""
    gate: Tensor
    """g, the weight of a read in the output: (H,)"""

    def block(self, segments: slice) -> "LocalMix":
        """Return the mix of some segments, where `local` is (S, B, H, Lq, V)."""
        return LocalMix(self.local[segments], self.gate)


def read_block(
    buffers: Buffers, q: Tensor, memories: Tensor, mix: LocalMix | None, out: Tensor
) -> None:
    """Read the memories with n segments; while a memory is empty, reads are zero.

    Args:
        buffers: Intermediate results.
        q: Queries before σ, (n, B, H, Lq, D).
        memories: Memories before the segments, (n, B, G, D, C).
        mix: Local attention, which is the output where the memory is empty; None: reads alone.
        out: Output, (n, B, H, Lq, V), which is written.
    """
    products = buffers.read(buffers.map_queries(q), memories)
    numerators, denominators = _fraction(products, q.shape, buffers.value_width)
    reads = numerators.div_(denominators.clamp_min(EPSILON))
    if mix is None:
        out.copy_(reads)
        return
    gate = mix.gate.to(memories.dtype)[:, None, None] * _is_written(memories, buffers.value_width)
    gate, reads = gate.to(mix.local.dtype), reads.to(mix.local.dtype)
    torch.lerp(mix.local, reads, gate, out=out)


def read_block_backward(
    buffers: Buffers,
    q: Tensor,
    memories: Tensor,
    mix: LocalMix | None,
    d_out: Tensor,
    d_q: Tensor,
    d_mix: LocalMix | None,
) -> Tensor:
    """Compute the gradients of `read_block`.

    Args:
        buffers: Intermediate results.
        q: As in `read_block`.
        memories: As in `read_block`.
        mix: As in `read_block`.
        d_out: Gradient of the output, (n, B, H, Lq, V).
        d_q: Gradient of the queries, which is written.
        d_mix: Gradients of the mix: that of `local`, which is written, and that of the gate, (H,),
            in the memories' type, to which this block's is added.

    Returns:
        The gradient of the memories, (n, B, G, D, C).
    """
    d_out = d_out.to(memories.dtype)
    queries = buffers.map_queries(q)
    products = buffers.read(queries, memories)
    numerators, denominators = _fraction(products, q.shape, buffers.value_width)
    scale = 1 / denominators.clamp_min(EPSILON)  # ∂ read / ∂ numerator: (n, B, H, Lq, 1)
    reads = numerators.mul_(scale)
    d_gate = torch.linalg.vecdot(d_out, reads)[..., None]  # (n, B, H, Lq, 1)
    d_denominators = d_gate * scale.neg() * (denominators > EPSILON)
    if mix is not None and d_mix is not None:
        written = _is_written(memories, buffers.value_width)
        gate = _mix_backward(mix, d_mix, d_out, d_gate, written)
        scale, d_denominators = scale * gate, d_denominators * gate
    # The reads are no longer needed: their buffer takes their gradients.
    torch.mul(d_out, scale, out=numerators)
    denominators.copy_(d_denominators)
    products[..., buffers.value_width + 1 :] = 0
    d_memories = queries.mT @ products
    d_queries = buffers.query_gradients(products, memories)
    torch.mul(d_queries.view(q.shape), derivative_(queries).view(q.shape), out=d_q)
    return d_memories


def _mix_backward(
    mix: LocalMix, d_mix: LocalMix, d_out: Tensor, d_gate: Tensor, written: Tensor
) -> Tensor:
    """Write to d_mix and return the weight of a read in the output, (n, B, H, 1, 1).

    d_gate: d_out · read, (n, B, H, Lq, 1); written: see `_is_written`.
    """
    gate = mix.gate.to(d_out.dtype)[:, None, None] * written
    d_gate_local = torch.linalg.vecdot(d_out, mix.local.to(d_out.dtype))[..., None]
    d_mix.gate.add_(((d_gate - d_gate_local) * written).sum((0, 1, 3, 4)))
    torch.mul(d_out, 1 - gate, out=d_mix.local)
    return gate


def _fraction(products: Tensor, shape: torch.Size, value_width: int) -> tuple[Tensor, Tensor]:
    """Return numerators, (n, B, H, Lq, V), and denominators, (n, B, H, Lq, 1): views of a read.

    products: (n, B, G, H/G·Lq, C); shape: that of q, (n, B, H, Lq, D).
    """
    by_head = products.view(*shape[:4], -1)  # (n, B, H, Lq, C)
    return by_head[..., :value_width], by_head[..., value_width : value_width + 1]


def _is_written(memories: Tensor, value_width: int) -> Tensor:
    """Return whether anything has been written: (n, B, 1, 1, 1), as 0 or 1."""
    known = (memories[..., value_width] > 0).any(-1).any(-1)  # (n, B)
    return known[:, :, None, None, None].to(memories.dtype)
