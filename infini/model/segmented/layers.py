"""The two ways a memory stands in a model: in a layer's place, or beside it.

`InfiniLayer`: a copy of the layer whose attention is ours. `InfiniAdapter`: the layer
itself, plus α times our attention of the same input. Both offer what `MemoryModule` has.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infini.memory import InfiniAttention, MemoryState
from infini.model.architectures import LAYER_CACHE_NAMES, attention_name
from infini.model.segmented.run import SegmentedRun, UsesRun, attend_documents

Compute = Callable[[Tensor, MemoryState | None], tuple[Any, MemoryState]]


class MemoryModule(UsesRun):
    """A module of ours in the place of a layer."""

    runs_original = True  # whether the layer that stood there is still run
    gradient_checkpointing = False  # set by Hugging Face's gradient_checkpointing_enable

    def __init__(self, original: nn.Module, layer_index: int):
        super().__init__()
        self.original = original  # what `remove` gives back
        self.layer_index = layer_index

    @property
    def infini_attention(self) -> InfiniAttention:
        """The attention that has the memory."""
        raise NotImplementedError

    def remember(self, compute: Compute, hidden_states: Tensor) -> Any:
        """Run `compute` on the layer's memory so far, and keep the memory that it returns."""
        state = None if self.run is None else self.run.states.get(self.layer_index)
        if self.gradient_checkpointing and self.training:
            out, state = checkpoint(compute, hidden_states, state, use_reentrant=False)
        else:
            out, state = compute(hidden_states, state)
        if self.run is not None:
            self.run.states[self.layer_index] = state
        return out

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that the retrofit added, by name."""
        for name, parameter in self.named_parameters():
            if not name.startswith("original."):
                yield name, parameter

    def weights(self) -> dict[str, float]:
        """Learnt scalars that a report shows."""
        return {}


class ReplacedAttention(nn.Module):
    """Stands where a layer's attention stood; its `InfiniLayer` hands it the memory."""

    run: SegmentedRun | None = None
    state: MemoryState | None = None

    def __init__(self, attention: InfiniAttention, layer_index: int):
        super().__init__()
        self.attention = attention
        self.layer_index = layer_index

    def forward(self, hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Called like the attention it replaces; returns its output, and no weights."""
        out, self.state = attend_documents(self.attention, hidden_states, self.run, self.state)
        for name in LAYER_CACHE_NAMES:
            if kwargs.get(name) is not None:
                # We keep no keys here, but the base counts its cached tokens by any layer's.
                count = hidden_states.new_zeros(len(out), 1, out.shape[1], 1)
                kwargs[name].update(count, count, self.layer_index)
        return out, None


class InfiniLayer(MemoryModule):
    """In the place of a layer: a copy of it, trainable, whose attention is ours."""

    runs_original = False

    def __init__(self, original: nn.Module, attention: InfiniAttention, layer_index: int):
        super().__init__(original, layer_index)
        self.layer: nn.Module = copy.deepcopy(original)
        self.place = attention_name(self.layer)
        setattr(self.layer, self.place, ReplacedAttention(attention, layer_index))

    @property
    def infini_attention(self) -> InfiniAttention:
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

    gate_parameters = ("alpha",)  # trained at the gate learning rate

    def __init__(
        self, original: nn.Module, attention: InfiniAttention, layer_index: int, alpha: float
    ):
        super().__init__(original, layer_index)
        self.attention = attention
        self.norm = nn.LayerNorm(attention.q_proj.in_features)
        self.alpha = nn.Parameter(torch.tensor(alpha))

    @property
    def infini_attention(self) -> InfiniAttention:
        return self.attention

    def weights(self) -> dict[str, float]:
        return {"alpha": self.alpha.item()}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.original(hidden_states, *args, **kwargs)
        run = self.run

        def compute(hidden: Tensor, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
            return attend_documents(self.attention, self.norm(hidden), run, state)

        beside = self.alpha * self.remember(compute, hidden_states)
        return (out[0] + beside, *out[1:]) if isinstance(out, tuple) else out + beside
