"""Cache of a window model: the state between two calls, as a Hugging Face cache.

A short text, of up to W + S tokens and within the base's own sliding windows, is held as the base's
own keys and values. Once it is longer, the cache holds sinks, window and memory of every layer, of
constant size.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from transformers import DynamicCache

from infini.memory.window import WindowState
from infini.model.cache import MemoryCache


class WindowCache(MemoryCache):
    """State of a window model between two calls; a call advances it in place."""

    file_format = "infini-window-7"

    def __init__(self, fingerprint: str, dtype: str | None = None):
        super().__init__(fingerprint, dtype)
        # Sinks, window and memory of a long text, by layer; empty for a short text
        self.states: dict[int, WindowState] = {}
        # The base's keys and values of a short text, with `token_mask` and `positions` of its
        # columns; empty for a long text
        self.base_cache = DynamicCache()
        # Positions of the columns of `base_cache`: (B, C) int64, on the CPU
        self.positions = torch.zeros(0, 0, dtype=torch.int64)
        # Positions of pinned tokens in order, -1 in empty slots, which come first: (B, M) int64, on
        # the CPU; M is 0 where none is pinned, and at most K
        self.pinned = torch.zeros(0, 0, dtype=torch.int64)

    def _set_batch_size(self, batch: int) -> None:
        super()._set_batch_size(batch)
        self.positions = self.pinned = torch.zeros(batch, 0, dtype=torch.int64)

    def switch_to_window(self, states: dict[int, WindowState]) -> None:
        """Hold `states`, by layer, instead of the base's keys and values."""
        self.states, self.base_cache = states, DynamicCache()
        self.token_mask, self.positions = self.token_mask[:, :0], self.positions[:, :0]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._apply(change)
        self.states = {index: state.map(change) for index, state in self.states.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.states = {i: state.select(indices) for i, state in self.states.items()}
        self.positions = self.positions[indices.cpu()]
        self.pinned = self.pinned[indices.cpu()]
        self.base_cache.batch_select_indices(indices)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {
            "token_counts": self.token_counts,
            "token_mask": self.token_mask,
            "positions": self.positions,
            "pinned": self.pinned,
        }
        for index, state in self.states.items():
            tensors |= {f"window.{index}.{name}": x for name, x in state.tensors().items()}
        for index, layer in enumerate(self.base_cache.layers):
            tensors |= {f"base.{index}.keys": layer.keys, f"base.{index}.values": layer.values}
        return tensors

    @classmethod
    def from_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> Self:
        cache = cls(fingerprint)
        cache._set_batch_size(len(tensors["token_counts"]))
        cache.token_counts = tensors["token_counts"]
        cache.token_mask, cache.positions = tensors["token_mask"], tensors["positions"]
        cache.pinned = tensors["pinned"]
        by_layer: dict[str, dict[int, dict[str, Tensor]]] = {"window": {}, "base": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if rest:
                layer, _, field = rest.partition(".")
                by_layer[kind].setdefault(int(layer), {})[field] = tensor
        cache.states = {
            index: WindowState.from_tensors(own)
            for index, own in sorted(by_layer["window"].items())
        }
        for index, own in sorted(by_layer["base"].items()):
            cache.base_cache.update(own["keys"], own["values"], index)
        return cache
