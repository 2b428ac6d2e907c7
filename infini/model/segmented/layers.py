"""Decoder layers with Infini-attention: a layer's replacement, and an adapter in parallel to it.

`InfiniLayer` ("replace"): a copy of the layer whose attention is ours. `InfiniAdapter`
("parallel"): the layer itself, plus α times our attention on the same input. Both are a
`MemoryModule`, which keeps the original layer and hands the memory from call to call.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infini.memory import InfiniAttention, MemoryState
from infini.model.architectures import LAYER_CACHE_NAMES, attention_name
from infini.model.peft_adapters import active_module
from infini.model.segmented.run import SegmentedRun, attend_documents, current_run, use_run

Compute = Callable[[Tensor, SegmentedRun | None, MemoryState | None], tuple[Any, Any]]


class MemoryModule(nn.Module):
    """Base class of the modules that take the slot of a decoder layer.

    Args:
        original: the decoder layer; `remove` puts it back as it is.
        infini_layer: all that the retrofit adds.
        layer_index: index of the decoder layer, from 0.
    """

    # Whether the original layer still runs
    runs_original = True
    # Before the names of the added parameters in a saved model
    prefix = ""
    # Set by transformers' gradient_checkpointing_enable
    gradient_checkpointing = False

    def __init__(self, original: nn.Module, infini_layer: nn.Module, layer_index: int):
        super().__init__()
        self.original = original
        self.infini_layer = infini_layer
        self.layer_index = layer_index

    @property
    def infini_attention(self) -> InfiniAttention:
        """Attention that has the memory."""
        raise NotImplementedError

    def run_with_memory(self, compute: Compute, hidden_states: Tensor) -> Any:
        """Run `compute` on the layer's memory so far, and store the memory that it returns.

        Args:
            compute: takes hidden states, (B·N, L, d), the run, and the memory before them, None at
                first; returns its output and the memory after them.
            hidden_states: the layer's input, (B·N, L, d).

        Returns:
            The output of `compute`.
        """
        run = current_run()
        state = None if run is None else run.states.get(self.layer_index)
        if self.gradient_checkpointing and self.training:
            out, state = checkpoint(compute, hidden_states, run, state, use_reentrant=False)
        else:
            out, state = compute(hidden_states, run, state)
        if run is not None:
            run.states[self.layer_index] = state
        return out

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that the retrofit added, with their names in a saved model."""
        return active_module(self.infini_layer).named_parameters(self.prefix)

    def learned_scalars(self) -> dict[str, float]:
        """Return the learned scalars that a report shows, by name."""
        return {}


class ReplacedAttention(nn.Module):
    """Module in the slot of a layer's attention."""

    def __init__(self, attention: InfiniAttention, layer_index: int):
        super().__init__()
        self.attention = attention
        self.layer_index = layer_index

    def forward(self, hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Compute our attention, called like the one it replaces; (output, no weights)."""
        run = current_run()
        state = None if run is None else run.states.get(self.layer_index)
        out, state = attend_documents(self.attention, hidden_states, run, state)
        if run is not None:
            run.states[self.layer_index] = state
        for name in LAYER_CACHE_NAMES:
            if kwargs.get(name) is not None:
                # No keys to cache here, but the base may count its cached tokens by this layer
                count = hidden_states.new_zeros(len(out), 1, out.shape[1], 1)
                kwargs[name].update(count, count, self.layer_index)
        return out, None


class InfiniLayer(MemoryModule):
    """Trainable copy of a decoder layer whose attention is ours; takes the layer's slot."""

    runs_original = False
    prefix = "layer"

    def __init__(self, original: nn.Module, attention: InfiniAttention, layer_index: int):
        super().__init__(original, copy.deepcopy(original), layer_index)
        self.attention_name = attention_name(original)
        replaced = ReplacedAttention(attention, layer_index)
        setattr(self.infini_layer, self.attention_name, replaced)

    @property
    def infini_attention(self) -> InfiniAttention:
        attention: InfiniAttention = getattr(
            active_module(self.infini_layer), self.attention_name
        ).attention
        return attention

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = active_module(self.infini_layer)
        # `run_with_memory` checkpoints, with the memory; the layer itself must not
        vars(layer)["gradient_checkpointing"] = False

        def compute(
            hidden: Tensor, run: SegmentedRun | None, state: MemoryState | None
        ) -> tuple[Any, MemoryState | None]:
            # Also in the backward pass, which computes again and belongs to no run
            states = {} if state is None else {self.layer_index: state}
            with use_run(None if run is None else replace(run, states=states)):
                out = layer(hidden, *args, **kwargs)
            return out, states.get(self.layer_index)

        return self.run_with_memory(compute, hidden_states)


class ParallelAttention(nn.Module):
    """Branch that an `InfiniAdapter` adds to its layer: α · attention(norm(x))."""

    gate_parameters = ("alpha",)  # trained at the gate learning rate

    def __init__(self, attention: InfiniAttention, alpha: float):
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(attention.q_proj.in_features)
        self.alpha = nn.Parameter(torch.tensor(alpha))


class InfiniAdapter(MemoryModule):
    """A decoder layer in parallel to our attention: layer(x) + α · attention(norm(x))."""

    @property
    def branch(self) -> ParallelAttention:
        """The branch added to the layer; of several copies, the active one."""
        branch = active_module(self.infini_layer)
        assert isinstance(branch, ParallelAttention)
        return branch

    @property
    def infini_attention(self) -> InfiniAttention:
        return self.branch.attention

    @property
    def alpha(self) -> nn.Parameter:
        """Factor of what is added."""
        return self.branch.alpha

    def learned_scalars(self) -> dict[str, float]:
        return {"alpha": self.alpha.item()}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.original(hidden_states, *args, **kwargs)
        branch = self.branch

        def compute(
            hidden: Tensor, run: SegmentedRun | None, state: MemoryState | None
        ) -> tuple[Tensor, MemoryState]:
            return attend_documents(branch.attention, branch.norm(hidden), run, state)

        added = branch.alpha * self.run_with_memory(compute, hidden_states)
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added
