"""The state of a model with a window between two calls, as a Hugging Face cache.

Of a short text, of up to W + S tokens: the base's own keys and values. Of a longer one: sinks,
window and memory of every layer, of the same size ever after.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from infini.errors import InputError
from infini.memory.window import WindowState
from infini.model.architectures import CACHE
from infini.model.sequence_cache import SequenceCache

FORMAT = "infini-window-2"


class WindowCache(SequenceCache):
    """A model's cache; every call that is given it moves it on, in place."""

    def __init__(self, fingerprint: str):
        super().__init__(fingerprint)
        self.counts = torch.zeros(0, dtype=torch.int64)  # real tokens read: (B,), on the CPU
        self.states: dict[int, WindowState] = {}  # by layer, of a long text
        self.text = DynamicCache()  # of a short text, whose columns `live` and `positions` tell
        self.positions = torch.zeros(0, 0, dtype=torch.int64)  # (B, C), the base's

    def start(self, batch: int) -> None:
        """An empty cache learns its batch size."""
        if not len(self.counts):
            self.counts = torch.zeros(batch, dtype=torch.int64)
            self.live = torch.zeros(batch, 0, dtype=torch.bool)
            self.positions = torch.zeros(batch, 0, dtype=torch.int64)
        if len(self.counts) != batch:
            raise InputError(
                f"{CACHE} holds {len(self.counts)} samples, the batch has {batch}: "
                "repeat it with batch_repeat_interleave"
            )

    def become_long(self, states: dict[int, WindowState]) -> None:
        """The short text's keys and values are in `states` now."""
        self.states, self.text = states, DynamicCache()
        self.live, self.positions = self.live[:, :0], self.positions[:, :0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def to(self, device: torch.device) -> "WindowCache":
        """Move it, in place."""
        self.states = {i: state.map(lambda x: x.to(device)) for i, state in self.states.items()}
        for layer in self.text.layers:
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
        return self

    def select(self, samples: Tensor) -> None:
        """Keep these samples, in this order, in place; samples: (n,) int64."""
        super().select(samples)
        here = samples.cpu()
        self.states = {i: state.select(samples) for i, state in self.states.items()}
        self.counts, self.live = self.counts[here], self.live[here]
        self.positions = self.positions[here]
        self.text.batch_select_indices(samples)

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by name."""
        own = {"counts": self.counts, "live": self.live, "positions": self.positions}
        for index, state in self.states.items():
            own |= {f"window.{index}.{name}": x for name, x in state.tensors().items()}
        for index, layer in enumerate(self.text.layers):
            own |= {f"text.{index}.keys": layer.keys, f"text.{index}.values": layer.values}
        return own

    @classmethod
    def of_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> "WindowCache":
        """The inverse of `tensors`; KeyError where one is missing."""
        cache = cls(fingerprint)
        kinds: dict[str, dict[int, dict[str, Tensor]]] = {"window": {}, "text": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if rest:
                index, _, field = rest.partition(".")
                kinds[kind].setdefault(int(index), {})[field] = tensor
        cache.counts, cache.live = tensors["counts"], tensors["live"]
        cache.positions = tensors["positions"]
        cache.states = {
            i: WindowState.of_tensors(kinds["window"][i]) for i in sorted(kinds["window"])
        }
        for number, layer in sorted(kinds["text"].items()):
            cache.text.update(layer["keys"], layer["values"], number)
        return cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(torch.arange(len(self.counts)).repeat_interleave(repeats))
