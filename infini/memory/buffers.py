"""Buffers for the intermediate results of a block of segments, or of a block of chunks.

Elementwise passes over (L, H, D) tensors cost as much as the matrix products here, so the
work is done block by block, in buffers that stay in the processor's caches.

Shapes: n segments of a block, B batch, H query heads, G key-value heads, Lq queries and Lk keys
a segment, D key width, V value width, C columns of the memory.
"""

import math

import torch
from torch import Tensor

from infini.memory.features import feature_map_into

BUFFER_ELEMENTS = {"cpu": 2**19}  # elements of a block's largest buffer: the size of the caches
BUFFER_ELEMENTS_ACCELERATOR = 2**25  # few, large kernels
MAX_SEGMENTS = 64  # of a block: the cost of its running sum is quadratic


def memory_columns(value_width: int) -> int:
    """Return C: V and one for z, rounded up to 8 (V + 1 columns cost a third more time)."""
    return (value_width + 8) // 8 * 8


class Buffers:
    """Intermediate results of a block of segments; the next block overwrites them.

    Args:
        q: Queries, (S, B, H, Lq, D), which give sizes, as the rest.
        k: Keys, (S, B, G, Lk, D).
        v: Values, (S, B, G, Lk, V).
        memory: Memory, (B, G, D, C); gives type and device too.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor):
        self.segments, batch, heads, queries, width = q.shape
        groups, keys, self.value_width = v.shape[2:]
        largest = max(batch * heads * queries, batch * groups * keys) * max(width, v.shape[4])
        elements = BUFFER_ELEMENTS.get(q.device.type, BUFFER_ELEMENTS_ACCELERATOR)
        step = min(elements // max(largest, 1), MAX_SEGMENTS, self.segments)
        self.step = max(1, step)  # segments of a block
        shape = (self.step, batch, groups)
        rows = heads // groups * queries
        self._queries = memory.new_empty(*shape, rows, width)
        self._keys = memory.new_empty(*shape, keys, width)
        self._values = memory.new_zeros(*shape, keys, memory.shape[-1])  # [V | 1 | 0]
        self._values[..., self.value_width] = 1
        self._reads = memory.new_empty(*shape, rows, memory.shape[-1])
        self._scratch = memory.new_empty(*shape, max(rows, keys), width)

    def blocks(self) -> list[slice]:
        """Return the S segments as consecutive blocks."""
        starts = range(0, self.segments, self.step)
        return [slice(start, min(start + self.step, self.segments)) for start in starts]

    def map_queries(self, q: Tensor) -> Tensor:
        """Compute σ(q): (n, B, H, Lq, D) → (n, B, G, H/G·Lq, D), heads of a group side by side."""
        buffer = self._queries[: len(q)]
        feature_map_into(buffer.view(q.shape), q, self._scratch)
        return buffer

    def map_keys(self, k: Tensor) -> Tensor:
        """Compute σ(k): (n, B, G, Lk, D)."""
        buffer = self._keys[: len(k)]
        feature_map_into(buffer, k, self._scratch)
        return buffer

    def extend_values(self, v: Tensor) -> Tensor:
        """Return [V | 1 | 0]: (n, B, G, Lk, V) → (n, B, G, Lk, C); the ones are written to z."""
        buffer = self._values[: len(v)]
        buffer[..., : self.value_width] = v
        return buffer

    def read(self, queries: Tensor, memories: Tensor) -> Tensor:
        """Compute σ(q) [M | z | 0] = [numerators | denominator | 0]: (n, B, G, H/G·Lq, C)."""
        return torch.matmul(queries, memories, out=self._reads[: len(queries)])

    def query_gradients(self, d_reads: Tensor, memories: Tensor) -> Tensor:
        """Compute ∂σ(q), (n, B, G, H/G·Lq, D), from the gradients of what `read` returned.

        The result is valid until queries or keys are mapped again.
        """
        shape = (*d_reads.shape[:-1], memories.shape[-2])
        # contiguous, so that its heads can be viewed apart
        out = self._scratch.flatten()[: math.prod(shape)].view(shape)
        return torch.matmul(d_reads, memories.mT, out=out)


class Scratch:
    """Named intermediate results; those of the next block overwrite them.

    Args:
        like: Tensor that gives type and device.
    """

    def __init__(self, like: Tensor):
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return contiguous memory for a result; its content is undefined."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = self._like.new_empty(size)
        return flat[:size].view(shape)
