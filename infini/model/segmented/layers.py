"""Decoder layers with Infini-attention: a layer's replacement, and an adapter in parallel to it.

`InfiniLayer` ("replace"): a copy of the layer whose attention is ours. `InfiniAdapter`
("parallel"): the layer itself, plus α times our attention on the same input. Both are a
`MemoryModule`, which keeps the original layer and hands the memory from call to call.
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
    """Base class of the modules that take the slot of a decoder layer."""

    # Whether the original layer still runs
    runs_original = True
    # Set by transformers' gradient_checkpointing_enable
    gradient_checkpointing = False

    def __init__(self, original: nn.Module, layer_index: int):
        super().__init__()
        self.original = original  # `remove` puts it back
        self.layer_index = layer_index

    @property
    def infini_attention(self) -> InfiniAttention:
        """Attention that has the memory."""
        raise NotImplementedError

    def run_with_memory(self, compute: Compute, hidden_states: Tensor) -> Any:
        """Run `compute` on the layer's memory so far, and store the memory that it returns.

        Args:
            compute: takes hidden states, (B·N, L, d), and the memory before them, None at first;
                returns its output and the memory after them.
            hidden_states: the layer's input, (B·N, L, d).

        Returns:
            The output of `compute`.
        """
        state = None if self.run is None else self.run.states.get(self.layer_index)
        if self.gradient_checkpointing and self.training:
            out, state = checkpoint(compute, hidden_states, state, use_reentrant=False)
        else:
            out, state = compute(hidden_states, state)
        if self.run is not None:
            self.run.states[self.layer_index] = state
        return out

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that the retrofit added, with their names."""
        for name, parameter in self.named_parameters():
            if not name.startswith("original."):
                yield name, parameter

    def learned_scalars(self) -> dict[str, float]:
        """Return the learned scalars that a report shows, by name."""
        return {}


class ReplacedAttention(nn.Module):
    """Module in the slot of a layer's attention; its `InfiniLayer` hands it the memory."""

    run: SegmentedRun | None = None
    state: MemoryState | None = None

    def __init__(self, attention: InfiniAttention, layer_index: int):
        super().__init__()
        self.attention = attention
        self.layer_index = layer_index

    def forward(self, hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Compute our attention, called like the one it replaces; (output, no weights)."""
        out, self.state = attend_documents(self.attention, hidden_states, self.run, self.state)
        for name in LAYER_CACHE_NAMES:
            if kwargs.get(name) is not None:
                # No keys to cache here, but the base may count its cached tokens by this layer
                count = hidden_states.new_zeros(len(out), 1, out.shape[1], 1)
                kwargs[name].update(count, count, self.layer_index)
        return out, None


class InfiniLayer(MemoryModule):
    """Trainable copy of a decoder layer whose attention is ours; takes the layer's slot."""

    runs_original = False

    def __init__(self, original: nn.Module, attention: InfiniAttention, layer_index: int):
        super().__init__(original, layer_index)
        self.layer: nn.Module = copy.deepcopy(original)
        self.attention_name = attention_name(self.layer)
        setattr(self.layer, self.attention_name, ReplacedAttention(attention, layer_index))

    @property
    def infini_attention(self) -> InfiniAttention:
        attention: InfiniAttention = getattr(self.layer, self.attention_name).attention
        return attention

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # `run_with_memory` checkpoints, with the memory; the layer itself must not
        vars(self.layer)["gradient_checkpointing"] = False
        run, replaced = self.run, getattr(self.layer, self.attention_name)

        def compute(hidden: Tensor, state: MemoryState | None) -> tuple[Any, Any]:
            replaced.run, replaced.state = run, state
            out = self.layer(hidden, *args, **kwargs)
            new_state, replaced.run, replaced.state = replaced.state, None, None
            return out, new_state

        return self.run_with_memory(compute, hidden_states)


class InfiniAdapter(MemoryModule):
    """A decoder layer in parallel to our attention: layer(x) + α · attention(norm(x))."""

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

    def learned_scalars(self) -> dict[str, float]:
        return {"alpha": self.alpha.item()}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.original(hidden_states, *args, **kwargs)
        run = self.run

        def compute(hidden: Tensor, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
            return attend_documents(self.attention, self.norm(hidden), run, state)

        added = self.alpha * self.run_with_memory(compute, hidden_states)
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added
