"""Run a model over documents by segments: the memory alone crosses from one to the next.

The N segments of a document are N rows of one batch for every layer but ours, which
see the whole document (`Run`). Positions restart in every segment.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from infini.attention import InfiniAttention
from infini.memory import MemoryState
from infini.ragged import Packing

States = dict[int, MemoryState]  # by layer
Compute = Callable[[Tensor, MemoryState | None], tuple[Tensor, MemoryState]]


@dataclass
class Run:
    """What our layers must know: whose segments the batch's rows are, the memory so far."""

    packing: Packing  # where the real tokens of each document are
    tokens: int  # T of a document, padding included
    segment_length: int
    states: States = field(default_factory=dict)


class TakesRun(nn.Module):
    """What is told, while a run lasts, whose segments the rows are."""

    run: Run | None = None


class MemoryModule(TakesRun):
    """A module of ours in the place of a layer: keeps the layer's memory between calls."""

    gradient_checkpointing = False  # set by Hugging Face's gradient_checkpointing_enable

    def __init__(self, layer_index: int):
        super().__init__()
        self.layer_index = layer_index

    def remember(self, compute: Compute, hidden_states: Tensor) -> Tensor:
        """Run `compute` on the layer's memory so far, and keep the memory that it returns."""
        state = None if self.run is None else self.run.states.get(self.layer_index)
        if self.gradient_checkpointing and self.training:
            out, state = checkpoint(compute, hidden_states, state, use_reentrant=False)
        else:
            out, state = compute(hidden_states, state)
        if self.run is not None:
            self.run.states[self.layer_index] = state
        return out


def attend_documents(
    attention: InfiniAttention, rows: Tensor, run: Run | None, state: MemoryState | None
) -> tuple[Tensor, MemoryState]:
    """Turn rows, (B·N, L, d), back into documents for our attention; the same shape out."""
    if run is None:  # every row a text of its own
        return attention(rows)
    documents = rows.reshape(len(run.packing.lengths), -1, rows.shape[-1])  # (B, N·L, d)
    out, state = attention.advance(
        run.packing.pack(documents[:, : run.tokens], 1),
        run.packing.lengths,
        state,
        run.segment_length,
    )
    padding = documents.shape[1] - run.tokens
    return F.pad(run.packing.unpack(out, 1), (0, 0, 0, padding)).view_as(rows), state


@contextmanager
def running(model: nn.Module, run: Run) -> Iterator[None]:
    """Within it, our modules take the rows of the batch for the segments of `run`."""
    ours = [module for module in model.modules() if isinstance(module, TakesRun)]
    for module in ours:
        module.run = run
    try:
        yield
    finally:
        for module in ours:
            module.run = None


class _Reached(Exception):
    """The layer has run: what comes after it is not needed."""


@contextmanager
def stopping_after(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within it, a forward pass ends, and the block with it, once `layer` has run.

    The list gets the layer's input and output, (B, T, d).
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((args[0], out[0] if isinstance(out, tuple) else out))
        raise _Reached

    handle = layer.register_forward_hook(stop)
    try:
        with suppress(_Reached):
            yield seen
    finally:
        handle.remove()


def run_rows(
    decoder: nn.Module,
    inputs: Tensor,
    lengths: Tensor,
    segment_length: int,
    states: States,
    **kwargs: Any,
) -> Any:
    """A decoder's output on whole documents, every segment at once; `states` is updated.

    inputs: tokens (B, T) or embeddings (B, T, d), padding behind `lengths`, (B,) on the CPU. The
    hidden states come out by document, (B, T, d).
    """
    if any(state.pending.any() for state in states.values()):
        raise ValueError(f"a chunk before the last must be a multiple of {segment_length} tokens")
    batch, tokens = inputs.shape[:2]
    rows = inputs
    if tokens > segment_length:
        padding = (0, 0) * (inputs.ndim - 2) + (0, -tokens % segment_length)
        rows = F.pad(inputs, padding).reshape(-1, segment_length, *inputs.shape[2:])  # (B·N, L, …)
    name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
    with running(decoder, Run(Packing(lengths, None), tokens, segment_length, states)):
        out = decoder(**{name: rows}, use_cache=False, **kwargs)

    def documents(hidden: Tensor) -> Tensor:  # (B·N, L, d) → (B, T, d)
        return hidden.reshape(batch, -1, hidden.shape[-1])[:, :tokens]

    out.last_hidden_state = documents(out.last_hidden_state)
    if out.get("hidden_states") is not None:
        out.hidden_states = tuple(map(documents, out.hidden_states))
    return out


def run_segments(
    model: PreTrainedModel,
    tokens: Tensor,
    segment_length: int,
    states: States | None = None,
    memory: bool = True,
) -> tuple[Tensor, States]:
    """The last hidden states of (B, T) documents read by segments, and the memory after them.

    states: the memory left by the documents' earlier chunks, each a multiple of the segment long.
    memory=False: every segment starts with an empty memory. Works on an untouched base too.
    """
    batch, length = tokens.shape
    states = dict(states or {})
    inputs = tokens
    if not memory:
        padding = -length % segment_length
        inputs = F.pad(tokens, (0, padding)).view(-1, min(segment_length, length + padding))
    lengths = torch.full((len(inputs),), inputs.shape[1])
    out = run_rows(model.get_decoder(), inputs, lengths, segment_length, states)
    hidden = out.last_hidden_state
    return hidden.reshape(batch, -1, hidden.shape[-1])[:, :length], states


def detach(states: States) -> States:
    """The same memory without the graph that led to it."""
    return {layer: state.detach() for layer, state in states.items()}
