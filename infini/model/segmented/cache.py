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
from infini.model.architectures import CACHE
from infini.model.segmented.run import States
from infini.model.sequence_cache import SequenceCache

FORMAT = "infini-memory-1"


class SegmentedCache(SequenceCache):
    """A model's cache; every call that is given it moves it on, in place."""

    def __init__(self, fingerprint: str, base: DynamicCache | None = None):
        super().__init__(fingerprint)
        self.memory: States = {}
        self.base = base or DynamicCache()  # of the other layers
        # Of the segment begun: tokens, (B,); `live` are the columns of `base` that are its own.
        self.pending = torch.zeros(0, dtype=torch.int64)

    def start(self, batch: int) -> None:
        """An empty cache learns its batch size."""
        if not len(self.pending):
            self.pending = torch.zeros(batch, dtype=torch.int64)
            self.live = torch.zeros(batch, 0, dtype=torch.bool)
        if len(self.pending) != batch:
            raise InputError(
                f"{CACHE} holds {len(self.pending)} samples, the batch has {batch}: "
                "repeat it with batch_repeat_interleave"
            )

    def advance(self, counts: Tensor, width: int, segment_length: int) -> None:
        """`base` has got `width` columns more, `counts` (B,) of them real; drop ended segments."""
        real = torch.arange(width) < counts[:, None]  # (B, width)
        self.live = torch.cat([self.live, real], 1)
        self.pending = self.pending + counts
        ended = self.pending == segment_length
        self.pending[ended] = 0
        self.live[ended] = False
        if not self.live.any():
            self.base, self.live = DynamicCache(), self.live[:, :0]
            return
        first = int(self.live.any(0).int().argmax())
        if first:
            self.live = self.live[:, first:]
            for layer in self.base.layers:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]

    def align(self) -> None:
        """Move every sample's own columns of `base` to the right, next to those that come now.

        Bases with a window of their own, or with biases, count columns: those of other samples in
        between would be distance.
        """
        if bool((self.live[:, :-1] <= self.live[:, 1:]).all()):
            return
        count = int(self.live.sum(1).max())
        order = self.live.to(torch.uint8).argsort(dim=1, stable=True)[:, -count:]  # (B, count)
        self.live = self.live.gather(1, order)
        for layer in self.base.layers:
            here = order.to(layer.keys.device)
            layer.keys, layer.values = gather(layer.keys, here, 2), gather(layer.values, here, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds."""
        own = sum(state.nbytes for state in self.memory.values())
        return own + sum(t.nbytes for t in _base_tensors(self.base).values())

    def to(self, device: torch.device) -> "SegmentedCache":
        """Move it, in place."""
        for index, state in self.memory.items():
            moved = MemoryState(*(tensor.to(device) for tensor in state))
            self.memory[index] = moved._replace(pending=state.pending)
        for layer in self.base.layers:
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by name; InputError where that cannot be read back."""
        if any(getattr(layer, "is_sliding", False) for layer in self.base.layers):
            raise InputError(
                "the state of a base with sliding windows and full attention is not saved"
            )
        memory = {
            f"memory.{index}.{name}": tensor
            for index, state in self.memory.items()
            for name, tensor in state._asdict().items()
        }
        return memory | _base_tensors(self.base) | {"pending": self.pending, "live": self.live}

    @classmethod
    def of_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> "SegmentedCache":
        """The inverse of `tensors`, for a model to check; KeyError where one is missing."""
        state = cls(fingerprint)
        state.pending, state.live = tensors.pop("pending"), tensors.pop("live")
        fields: dict[int, dict[str, Tensor]] = {}
        layers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, index, field = name.split(".")
            (fields if kind == "memory" else layers).setdefault(int(index), {})[field] = tensor
        state.memory = {index: MemoryState(**fields[index]) for index in sorted(fields)}
        for number, layer in sorted(layers.items()):
            state.base.update(layer["keys"], layer["values"], number)
        return state

    def select(self, samples: Tensor) -> None:
        """Keep these samples, in this order, in place; samples: (n,) int64."""
        super().select(samples)
        here = samples.cpu()
        self.memory = {i: state.select(samples) for i, state in self.memory.items()}
        self.pending, self.live = self.pending[here], self.live[here]
        self.base.batch_select_indices(samples)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(torch.arange(len(self.pending)).repeat_interleave(repeats))


def _base_tensors(base: DynamicCache) -> dict[str, Tensor]:
    return {
        f"base.{index}.{name}": getattr(layer, name)
        for index, layer in enumerate(base.layers)
        if layer.is_initialized
        for name in ("keys", "values")
    }
