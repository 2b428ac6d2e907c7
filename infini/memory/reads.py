"""A block of segments reads the memory: the read, its mix with local attention, the backward pass.

arXiv 2404.07143, equations 3 and 6: read = σ(Q)M / σ(Q)z, out = g · read + (1 - g) · local.

Shapes: n segments of a block, B batch, H query heads, G key-value heads, Lq queries a segment,
D key width, V value width, C columns of the memory, [M | z | 0].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.buffers import Buffers
from infini.memory.features import EPSILON, slope_


class Mix(NamedTuple):
    """What the reads are mixed with, or the gradients of these."""

    local: Tensor  # attention within the segments, shaped like the reads
    gate: Tensor  # g, a read's share of the output: (H,)

    def block(self, segments: slice) -> "Mix":
        """That of some segments, where `local` is (S, B, H, Lq, V)."""
        return Mix(self.local[segments], self.gate)


def read_block(buffers: Buffers, q: Tensor, memories: Tensor, mix: Mix | None, out: Tensor) -> None:
    """Write to out, (n, B, H, Lq, V), what n segments read, zero while the memory is empty.

    q: (n, B, H, Lq, D) before σ; memories: those before the segments, (n, B, G, D, C). With mix,
    its local attention comes undiluted where the memory is empty.
    """
    products = buffers.read(buffers.map_queries(q), memories)
    numerators, denominators = _fraction(products, q.shape, buffers.value_width)
    reads = numerators.div_(denominators.clamp_min(EPSILON))
    if mix is None:
        out.copy_(reads)
        return
    share = mix.gate.to(memories.dtype)[:, None, None] * _written(memories, buffers.value_width)
    share, reads = share.to(mix.local.dtype), reads.to(mix.local.dtype)
    torch.lerp(mix.local, reads, share, out=out)


def read_block_backward(
    buffers: Buffers,
    q: Tensor,
    memories: Tensor,
    mix: Mix | None,
    d_out: Tensor,
    d_q: Tensor,
    d_mix: Mix | None,
) -> Tensor:
    """Returns ∂ of the memories, (n, B, G, D, C); writes ∂ of the rest to d_q and d_mix.local.

    q, memories, mix: as in `read_block`. ∂ of the gate is added to d_mix.gate, (H,), of the
    memories' type.
    """
    d_out = d_out.to(memories.dtype)
    queries = buffers.map_queries(q)
    products = buffers.read(queries, memories)
    numerators, denominators = _fraction(products, q.shape, buffers.value_width)
    scale = 1 / denominators.clamp_min(EPSILON)  # ∂ read / ∂ numerator: (n, B, H, Lq, 1)
    reads = numerators.mul_(scale)
    along = torch.linalg.vecdot(d_out, reads)[..., None]  # (n, B, H, Lq, 1)
    d_denominators = along * scale.neg() * (denominators > EPSILON)
    if mix is not None and d_mix is not None:
        written = _written(memories, buffers.value_width)
        share = _mix_backward(mix, d_mix, d_out, along, written)
        scale, d_denominators = scale * share, d_denominators * share
    # The reads are done with: their buffer takes their gradients.
    torch.mul(d_out, scale, out=numerators)
    denominators.copy_(d_denominators)
    products[..., buffers.value_width + 1 :] = 0
    d_memories = queries.mT @ products
    d_queries = buffers.query_gradients(products, memories)
    torch.mul(d_queries.view(q.shape), slope_(queries).view(q.shape), out=d_q)
    return d_memories


def _mix_backward(mix: Mix, d_mix: Mix, d_out: Tensor, along: Tensor, written: Tensor) -> Tensor:
    """Fill in d_mix and return a read's share of the output, (n, B, H, 1, 1).

    along: d_out · read, (n, B, H, Lq, 1); written: see `_written`.
    """
    share = mix.gate.to(d_out.dtype)[:, None, None] * written
    along_local = torch.linalg.vecdot(d_out, mix.local.to(d_out.dtype))[..., None]
    d_mix.gate.add_(((along - along_local) * written).sum((0, 1, 3, 4)))
    torch.mul(d_out, 1 - share, out=d_mix.local)
    return share


def _fraction(products: Tensor, shape: torch.Size, value_width: int) -> tuple[Tensor, Tensor]:
    """Numerators, (n, B, H, Lq, V), and denominators, (n, B, H, Lq, 1): views of a read.

    products: (n, B, G, H/G·Lq, C); shape: of q, (n, B, H, Lq, D).
    """
    by_head = products.view(*shape[:4], -1)  # (n, B, H, Lq, C)
    return by_head[..., :value_width], by_head[..., value_width : value_width + 1]


def _written(memories: Tensor, value_width: int) -> Tensor:
    """Whether anything had been written: (n, B, 1, 1, 1), as 0 or 1."""
    known = (memories[..., value_width] > 0).any(-1).any(-1)  # (n, B)
    return known[:, :, None, None, None].to(memories.dtype)
