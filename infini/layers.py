"""The two ways a memory stands in a model: in a layer's place, or beside it.

`InfiniLayer`: a copy of the layer whose attention is ours. `InfiniAdapter`: the layer
itself, plus α times our attention of the same input.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.attention import InfiniAttention
from infini.base import attention_name, decoder_layers
from infini.memory import MemoryState
from infini.segments import MemoryModule, Run, attend_documents

CACHE_NAMES = ("past_key_values", "layer_past")  # what architectures call their cache


class ReplacedAttention(nn.Module):
    """Stands where a layer's attention stood; its `InfiniLayer` hands it the memory."""

    run: Run | None = None
    state: MemoryState | None = None

    def __init__(self, attention: InfiniAttention, layer_index: int):
        super().__init__()
        self.attention = attention
        self.layer_index = layer_index

    def forward(self, hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Called like the attention it replaces; returns its output, and no weights."""
        out, self.state = attend_documents(self.attention, hidden_states, self.run, self.state)
        for name in CACHE_NAMES:
            if kwargs.get(name) is not None:
                # We keep no keys here, but the base counts its cached tokens by any layer's.
                count = hidden_states.new_zeros(len(out), 1, out.shape[1], 1)
                kwargs[name].update(count, count, self.layer_index)
        return out, None


class InfiniLayer(MemoryModule):
    """In the place of a layer: a copy of it, trainable, whose attention is ours."""

    def __init__(self, original: nn.Module, attention: InfiniAttention, layer_index: int):
        super().__init__(layer_index)
        self.original = original  # not run: what remove() gives back
        self.layer: nn.Module = copy.deepcopy(original)
        self.place = attention_name(self.layer)
        setattr(self.layer, self.place, ReplacedAttention(attention, layer_index))

    @property
    def attention(self) -> InfiniAttention:
        """Ours."""
        attention: InfiniAttention = getattr(self.layer, self.place).attention
        return attention

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # `remember` checkpoints, with the memory's state: the layer itself must not.
        vars(self.layer)["gradient_checkpointing"] = False
        run, replaced = self.run, getattr(self.layer, self.place)

        def compute(hidden: Tensor, state: MemoryState | None) -> tuple[Any, Any]:
            replaced.run, replaced.state = run, state
            out = self.layer(hidden, *args, **kwargs)
            after, replaced.run, replaced.state = replaced.state, None, None
            return out, after

        return self.remember(compute, hidden_states)


class InfiniAdapter(MemoryModule):
    """Beside a layer: that layer, untouched, plus α · attention(norm(x))."""

    def __init__(
        self, original: nn.Module, attention: InfiniAttention, layer_index: int, alpha: float
    ):
        super().__init__(layer_index)
        self.original = original
        self.attention = attention
        self.norm = nn.LayerNorm(attention.q_proj.in_features)
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.original(hidden_states, *args, **kwargs)
        run = self.run

        def compute(hidden: Tensor, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
            return attend_documents(self.attention, self.norm(hidden), run, state)

        beside = self.alpha * self.remember(compute, hidden_states)
        return (out[0] + beside, *out[1:]) if isinstance(out, tuple) else out + beside


def infini_slots(model: PreTrainedModel) -> dict[int, InfiniLayer | InfiniAdapter]:
    """The decoder layers that are ours, by index; empty for an untouched base."""
    layers = enumerate(decoder_layers(model))
    return {i: layer for i, layer in layers if isinstance(layer, InfiniLayer | InfiniAdapter)}


def our_tensors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Exactly the parameters that the retrofit added, as `layers.<index>.<name>`."""
    return {
        f"layers.{index}.{name}": parameter
        for index, slot in infini_slots(model).items()
        for name, parameter in slot.named_parameters()
        if not name.startswith("original.")
    }
