"""Cache of a segmented model: the memory, and the keys and values of the incomplete segment.

Its size does not depend on the number of tokens read, unless the other layers keep their full
attention (`segmented=False`).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from infini.errors import InputError
from infini.memory import MemoryState
from infini.memory.packing import gather
from infini.model.cache import MemoryCache
from infini.model.segmented.run import LayerStates

COUNTS = ("pending", "token_mask", "token_counts")  # tensors that no layer has


class SegmentedCache(MemoryCache):
    """Cache of a segmented model; every call that it is given to advances it in place."""

    file_format = "infini-segmented-4"

    def __init__(
        self, fingerprint: str, dtype: str | None = None, base: DynamicCache | None = None
    ):
        super().__init__(fingerprint, dtype)
        self.memory: LayerStates = {}
        # Keys and values of the other layers; `token_mask` (B, C) is about its columns
        self.base_cache = base or DynamicCache()
        # Tokens of the incomplete segment: (B,) int64, on the CPU
        self.pending = torch.zeros(0, dtype=torch.int64)

    def _set_batch_size(self, batch: int) -> None:
        super()._set_batch_size(batch)
        self.pending = torch.zeros(batch, dtype=torch.int64)

    def advance(self, counts: Tensor, width: int, segment_length: int) -> None:
        """Count new columns of `base_cache`, and drop the columns of complete segments.

        Args:
            counts: new tokens of every sample, (B,) int64 on the CPU.
            width: new columns, the most of any sample.
            segment_length: tokens of a segment.
        """
        real = torch.arange(width) < counts[:, None]  # (B, width)
        self.token_mask = torch.cat([self.token_mask, real], 1)
        self.pending = self.pending + counts
        complete = self.pending == segment_length
        self.pending[complete] = 0
        self.token_mask[complete] = False
        if not self.token_mask.any():
            self.base_cache, self.token_mask = DynamicCache(), self.token_mask[:, :0]
            return
        first = int(self.token_mask.any(0).int().argmax())
        if first:
            self.token_mask = self.token_mask[:, first:]
            for layer in self.base_cache.layers:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]

    def align(self) -> None:
        """Move every sample's tokens in `base_cache` to the right, next to the new tokens.

        Bases with a sliding window or attention biases measure distance in columns: columns
        without a token in between would count.
        """
        if bool((self.token_mask[:, :-1] <= self.token_mask[:, 1:]).all()):
            return
        count = int(self.token_mask.sum(1).max())
        order = self.token_mask.to(torch.uint8).argsort(dim=1, stable=True)[
            :, -count:
        ]  # (B, count)
        self.token_mask = self.token_mask.gather(1, order)
        for layer in self.base_cache.layers:
            here = order.to(layer.keys.device)
            layer.keys, layer.values = gather(layer.keys, here, 2), gather(layer.values, here, 2)

    @property
    def nbytes(self) -> int:
        own = sum(state.nbytes for state in self.memory.values())
        return own + sum(t.nbytes for t in _base_tensors(self.base_cache).values())

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._apply(change)
        for index, state in self.memory.items():
            changed = MemoryState(*(change(tensor) for tensor in state))
            self.memory[index] = changed._replace(pending=state.pending)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the cache by name.

        Raises:
            InputError: If the base has sliding windows beside full attention: its cache cannot be
                loaded again.
        """
        if any(getattr(layer, "is_sliding", False) for layer in self.base_cache.layers):
            raise InputError(
                "save_memory does not support a base with sliding windows with segmented=False"
            )
        memory = {
            f"memory.{index}.{name}": tensor
            for index, state in self.memory.items()
            for name, tensor in state._asdict().items()
        }
        own = {name: getattr(self, name) for name in COUNTS}
        return memory | _base_tensors(self.base_cache) | own

    @classmethod
    def from_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> "SegmentedCache":
        cache = cls(fingerprint)
        cache._set_batch_size(len(tensors["token_counts"]))
        for name in COUNTS:
            setattr(cache, name, tensors.pop(name))
        fields: dict[int, dict[str, Tensor]] = {}
        layers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, number, field = name.split(".")
            (fields if kind == "memory" else layers).setdefault(int(number), {})[field] = tensor
        cache.memory = {index: MemoryState(**fields[index]) for index in sorted(fields)}
        for index, layer in sorted(layers.items()):
            cache.base_cache.update(layer["keys"], layer["values"], index)
        return cache

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.memory = {i: state.select(indices) for i, state in self.memory.items()}
        self.pending = self.pending[indices.cpu()]
        self.base_cache.batch_select_indices(indices)


def _base_tensors(cache: DynamicCache) -> dict[str, Tensor]:
    return {
        f"base.{index}.{name}": getattr(layer, name)
        for index, layer in enumerate(cache.layers)
        if layer.is_initialized
        for name in ("keys", "values")
    }
