"""Scratch memory for a block of segments: the kernel's large intermediate results.

Elementwise passes over (L, H, D) tensors cost as much as the matrix products here, so the
work is done block by block, in buffers that stay in the processor's cache.

Shapes: n segments of a block, B batch, H query heads, G key-value heads, Lq queries and Lk keys
a segment, D key width, V value width, C columns of the memory.
"""

import math

import torch
from torch import Tensor

from infini.memory.features import feature_map_into

BLOCK = {"cpu": 2**19}  # elements of a block's largest buffer: of the size of the caches
BLOCK_ELSEWHERE = 2**25  # on an accelerator: few, large kernels
MOST_SEGMENTS = 64  # of a block: its running sum costs their square


def columns(value_width: int) -> int:
    """C: V and one for z, rounded up to 8 (a product with V + 1 columns is a third slower)."""
    return (value_width + 8) // 8 * 8


class Buffers:
    """A block's intermediate results; the next block's are written over them.

    q: (S, B, H, Lq, D), k: (S, B, G, Lk, D), v: (S, B, G, Lk, V) and memory: (B, G, D, C) give
    the sizes; memory the type and device.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor):
        self.segments, batch, heads, queries, width = q.shape
        groups, keys, self.value_width = v.shape[2:]
        largest = max(batch * heads * queries, batch * groups * keys) * max(width, v.shape[4])
        room = BLOCK.get(q.device.type, BLOCK_ELSEWHERE) // max(largest, 1)
        self.step = max(1, min(room, MOST_SEGMENTS, self.segments))  # segments of a block
        shape = (self.step, batch, groups)
        rows = heads // groups * queries
        self._queries = memory.new_empty(*shape, rows, width)
        self._keys = memory.new_empty(*shape, keys, width)
        self._values = memory.new_zeros(*shape, keys, memory.shape[-1])  # [V | 1 | 0]
        self._values[..., self.value_width] = 1
        self._reads = memory.new_empty(*shape, rows, memory.shape[-1])
        self._scratch = memory.new_empty(*shape, max(rows, keys), width)

    def blocks(self) -> list[slice]:
        """The S segments, dealt out to blocks."""
        starts = range(0, self.segments, self.step)
        return [slice(start, min(start + self.step, self.segments)) for start in starts]

    def map_queries(self, q: Tensor) -> Tensor:
        """σ(q), (n, B, H, Lq, D) → (n, B, G, H/G·Lq, D): heads of one memory side by side."""
        buffer = self._queries[: len(q)]
        feature_map_into(buffer.view(q.shape), q, self._scratch)
        return buffer

    def map_keys(self, k: Tensor) -> Tensor:
        """σ(k): (n, B, G, Lk, D)."""
        buffer = self._keys[: len(k)]
        feature_map_into(buffer, k, self._scratch)
        return buffer

    def extend_values(self, v: Tensor) -> Tensor:
        """[V | 1 | 0], (n, B, G, Lk, V) → (n, B, G, Lk, C): what is written, its 1s to z."""
        buffer = self._values[: len(v)]
        buffer[..., : self.value_width] = v
        return buffer

    def read(self, queries: Tensor, memories: Tensor) -> Tensor:
        """σ(q) [M | z | 0] = [numerators | denominator | 0]: (n, B, G, H/G·Lq, C)."""
        return torch.matmul(queries, memories, out=self._reads[: len(queries)])

    def query_gradients(self, d_reads: Tensor, memories: Tensor) -> Tensor:
        """∂σ(q), (n, B, G, H/G·Lq, D), from the gradients of what `read` returned.

        It holds until queries or keys are mapped again.
        """
        shape = (*d_reads.shape[:-1], memories.shape[-2])
        # contiguous, so that its heads can be viewed apart
        out = self._scratch.flatten()[: math.prod(shape)].view(shape)
        return torch.matmul(d_reads, memories.mT, out=out)


class Scratch:
    """Intermediate results under their names; those of the next block are written over them."""

    def __init__(self, like: Tensor):
        self._like = like  # gives type and device
        self._flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Memory for a result: contiguous, what it holds is undefined."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = self._like.new_empty(size)
        return flat[:size].view(shape)
