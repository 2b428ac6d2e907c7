"""Run a model over documents by segments: the memory alone crosses from one to the next.

The N segments of a document are N rows of one batch for every layer but ours, which
see the whole document (`Run`). Positions restart in every segment.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.memory.packing import Packing
from infini.model.segmented.run import Run, States, running


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
) -> tuple[Tensor, States]:
    """The last hidden states of (B, T) documents read by segments, and the memory after them.

    states: the memory left by the documents' earlier chunks, each a multiple of the segment long.
    Works on an untouched base too.
    """
    states = dict(states or {})
    lengths = torch.full((len(tokens),), tokens.shape[1])
    out = run_rows(model.get_decoder(), tokens, lengths, segment_length, states)
    return out.last_hidden_state, states


def detach(states: States) -> States:
    """The same memory without the graph that led to it."""
    return {layer: state.detach() for layer, state in states.items()}
