"""The state of a model with memory between two calls, as a Hugging Face cache.

The memory of our layers, and the keys and values of the segment begun for all others.
Its size does not depend on how many tokens were read. It can be saved and read again.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from infini.errors import InputError
from infini.memory import MemoryState
from infini.memory.packing import gather
from infini.model.cache import MemoryCache
from infini.model.segmented.run import LayerStates


class SegmentedCache(MemoryCache):
    """A model's cache; every call that is given it moves it on, in place."""

    file_format = "infini-segmented-2"

    def __init__(self, fingerprint: str, base: DynamicCache | None = None):
        super().__init__(fingerprint)
        self.memory: LayerStates = {}
        self.base_cache = base or DynamicCache()  # of the other layers
        # Tokens of the segment begun, (B,); `token_mask`: its own columns of `base_cache`
        self.pending = torch.zeros(0, dtype=torch.int64)

    def _set_batch_size(self, batch: int) -> None:
        super()._set_batch_size(batch)
        self.pending = torch.zeros(batch, dtype=torch.int64)

    def advance(self, counts: Tensor, width: int, segment_length: int) -> None:
        """Count `width` new columns, `counts` (B,) of them tokens, and drop ended segments."""
        real = torch.arange(width) < counts[:, None]  # (B, width)
        self.token_mask = torch.cat([self.token_mask, real], 1)
        self.pending = self.pending + counts
        ended = self.pending == segment_length
        self.pending[ended] = 0
        self.token_mask[ended] = False
        if not self.token_mask.any():
            self.base_cache, self.token_mask = DynamicCache(), self.token_mask[:, :0]
            return
        first = int(self.token_mask.any(0).int().argmax())
        if first:
            self.token_mask = self.token_mask[:, first:]
            for layer in self.base_cache.layers:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]

    def align(self) -> None:
        """Move every sample's own columns of `base_cache` to the right, next to the new ones.

        Bases with a window of their own, or with biases, count columns: those of other samples in
        between would be distance.
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
        """Bytes of all tensors that it holds."""
        own = sum(state.nbytes for state in self.memory.values())
        return own + sum(t.nbytes for t in _base_tensors(self.base_cache).values())

    def to(self, device: torch.device) -> "SegmentedCache":
        """Move it, in place."""
        for index, state in self.memory.items():
            moved = MemoryState(*(tensor.to(device) for tensor in state))
            self.memory[index] = moved._replace(pending=state.pending)
        for layer in self.base_cache.layers:
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by name; InputError where that cannot be read back."""
        if any(getattr(layer, "is_sliding", False) for layer in self.base_cache.layers):
            raise InputError(
                "the state of a base with sliding windows and full attention is not saved"
            )
        memory = {
            f"memory.{index}.{name}": tensor
            for index, state in self.memory.items()
            for name, tensor in state._asdict().items()
        }
        return (
            memory
            | _base_tensors(self.base_cache)
            | {"pending": self.pending, "token_mask": self.token_mask}
        )

    @classmethod
    def from_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> "SegmentedCache":
        """The inverse of `tensors`, for a model to check; KeyError where one is missing."""
        state = cls(fingerprint)
        state.pending, state.token_mask = tensors.pop("pending"), tensors.pop("token_mask")
        fields: dict[int, dict[str, Tensor]] = {}
        layers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, index, field = name.split(".")
            (fields if kind == "memory" else layers).setdefault(int(index), {})[field] = tensor
        state.memory = {index: MemoryState(**fields[index]) for index in sorted(fields)}
        for number, layer in sorted(layers.items()):
            state.base_cache.update(layer["keys"], layer["values"], number)
        return state

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.memory = {i: state.select(indices) for i, state in self.memory.items()}
        self.pending = self.pending[indices.cpu()]
        self.base_cache.batch_select_indices(indices)


def _base_tensors(base: DynamicCache) -> dict[str, Tensor]:
    return {
        f"base.{index}.{name}": getattr(layer, name)
        for index, layer in enumerate(base.layers)
        if layer.is_initialized
        for name in ("keys", "values")
    }
