"""Segmented run: the segments of a document are rows of one batch, only the memory crosses them.

Every layer of the base sees the N segments of a document as N rows; our modules see the whole
document again (`SegmentedRun`). Positions restart in every segment. arXiv 2404.07143, section 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.memory import InfiniAttention, MemoryState
from infini.memory.packing import Packing

LayerStates = dict[int, MemoryState]  # memory by decoder layer, counted from 0

# Argument of a decoder's forward pass that makes it one pass of a run, see `SegmentedDecoder`
RUN = "infini_run"


@dataclass
class SegmentedRun:
    """State of one forward pass that our modules share."""

    # Position of every document's tokens in the batch, and of its padding
    packing: Packing
    # Length T of a document, padding included; in tokens
    tokens: int
    # Length L of a segment; in tokens
    segment_length: int
    # Memory before the pass; our modules replace it by the memory after the pass
    states: LayerStates = field(default_factory=dict)


# The run of the forward pass that this thread computes: a model may be called by many at once
_CURRENT: ContextVar[SegmentedRun | None] = ContextVar("infini_run", default=None)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def current_run() -> SegmentedRun | None:
    """Return the run of the forward pass that calls this; None: every row is a text of its own."""
    return _CURRENT.get()


@contextmanager
def use_run(run: SegmentedRun | None) -> Iterator[None]:
    """Make `run` the one of the forward passes in the block, in this thread alone."""
    token = _CURRENT.set(run)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def attend_documents(
    attention: InfiniAttention, rows: Tensor, run: SegmentedRun | None, state: MemoryState | None
) -> tuple[Tensor, MemoryState]:
    """Apply our attention to whole documents whose segments are the rows of a batch.

    Args:
        attention: the attention with a memory.
        rows: hidden states, (B·N, L, d), N segments of L tokens for each of B documents.
        run: the pass that the rows belong to; None: every row is a text of its own.
        state: memory before the first segment; None: empty.

    Returns:
        The attention's output, (B·N, L, d), and the memory after the last segment.
    """
    if run is None:
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


def run_decoder(
    decoder: nn.Module,
    inputs: Tensor,
    lengths: Tensor,
    segment_length: int,
    states: LayerStates,
    **kwargs: Any,
) -> Any:
    """Run a decoder on whole documents, all their segments in one pass.

    Args:
        decoder: the decoder of a model, without the head.
        inputs: tokens (B, T) or embeddings (B, T, d), padding behind the tokens.
        lengths: tokens of every document without padding, (B,) int64 on the CPU.
        segment_length: length L of a segment, in tokens.
        states: memory before the documents; updated in place.
        **kwargs: further arguments of the decoder.

    Returns:
        The decoder's output; its hidden states are by document, (B, T, d).

    Raises:
        ValueError: if `states` hold a segment that is not complete.
    """
    if any(state.pending.any() for state in states.values()):
        raise ValueError(f"a chunk before the last must be a multiple of {segment_length} tokens")
    batch, tokens = inputs.shape[:2]
    rows = inputs
    if tokens > segment_length:
        padding = (0, 0) * (inputs.ndim - 2) + (0, -tokens % segment_length)
        rows = F.pad(inputs, padding).reshape(-1, segment_length, *inputs.shape[2:])  # (B·N, L, …)
    name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
    run = SegmentedRun(Packing(lengths, None), tokens, segment_length, states)
    own = {RUN: run} if getattr(decoder, "accepts_run", False) else {}  # an untouched base has none
    out = decoder(**{name: rows}, use_cache=False, **own, **kwargs)

    def by_document(hidden: Tensor) -> Tensor:  # (B·N, L, d) → (B, T, d)
        return hidden.reshape(batch, -1, hidden.shape[-1])[:, :tokens]

    out.last_hidden_state = by_document(out.last_hidden_state)
    if out.get("hidden_states") is not None:
        out.hidden_states = tuple(map(by_document, out.hidden_states))
    return out


def run_segments(
    model: PreTrainedModel,
    tokens: Tensor,
    segment_length: int,
    states: LayerStates | None = None,
) -> tuple[Tensor, LayerStates]:
    """Read documents by segments, with a retrofitted model or an untouched base.

    Args:
        model: the model; of an untouched base every segment stands alone.
        tokens: documents without padding, (B, T).
        segment_length: length of a segment, in tokens.
        states: memory after the documents' earlier chunks, each a multiple of the segment long;
            None: the documents begin here.

    Returns:
        The last hidden states, (B, T, d), and the memory after these tokens.

    Raises:
        ValueError: if an earlier chunk was no multiple of the segment long.
    """
    states = dict(states or {})
    lengths = torch.full((len(tokens),), tokens.shape[1])
    out = run_decoder(model.get_decoder(), tokens, lengths, segment_length, states)
    return out.last_hidden_state, states


def detach_states(states: LayerStates) -> LayerStates:
    """Return the same memory without the graph that led to it."""
    return {layer: state.detach() for layer, state in states.items()}


class _StopForward(Exception):
    """Ends a forward pass: the layer that is recorded has run."""


@contextmanager
def stop_after(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """End the forward pass in the block, and the block itself, once `layer` has run.

    Args:
        layer: a decoder layer.

    Yields:
        A list that gets the layer's input and output, both (B, T, d).
    """
    recorded: list[tuple[Tensor, Tensor]] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        recorded.append((args[0], out[0] if isinstance(out, tuple) else out))
        raise _StopForward

    handle = layer.register_forward_hook(stop)
    try:
        with suppress(_StopForward):
            yield recorded
    finally:
        handle.remove()
