"""Run a model over documents by segments: the memory alone crosses from one to the next.

The N segments of a document are N rows of one batch for every layer but ours, which
see the whole document (`SegmentedRun`). Positions restart in every segment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.attention import InfiniAttention
from infini.memory import MemoryState

States = dict[int, MemoryState]  # by layer


@dataclass
class SegmentedRun:
    """What our layers must know: whose segments the batch's rows are, the memory so far."""

    mask: Tensor  # real tokens: (B, T), bool
    segment_length: int
    states: States = field(default_factory=dict)


class MemoryModule(nn.Module):
    """A module of ours inside the model: turns rows of segments back into documents."""

    run: SegmentedRun | None = None

    def __init__(self, attention: InfiniAttention, layer_index: int):
        super().__init__()
        self.attention = attention
        self.layer_index = layer_index

    def attend(self, rows: Tensor) -> Tensor:
        """(B*N, L, d) within a segmented run, (B, T, d) outside of one; same shape out."""
        run = self.run
        if run is None:
            return self.attention(rows)[0]
        batch, tokens = run.mask.shape
        documents = rows.reshape(batch, -1, rows.shape[-1])  # (B, N*L, d)
        out, run.states[self.layer_index] = self.attention(
            documents[:, :tokens],
            run.states.get(self.layer_index),
            run.mask,
            run.segment_length,
        )
        return F.pad(out, (0, 0, 0, documents.shape[1] - tokens)).view_as(rows)


def memory_modules(model: nn.Module) -> list[MemoryModule]:
    """Our modules inside a model, first layer first; none in an untouched base."""
    return [module for module in model.modules() if isinstance(module, MemoryModule)]


@contextmanager
def segmented(model: nn.Module, run: SegmentedRun) -> Iterator[None]:
    """Within it, our modules read the rows of the batch as the segments of `run`."""
    modules = memory_modules(model)
    for module in modules:
        module.run = run
    try:
        yield
    finally:
        for module in modules:
            module.run = None


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
    if any(state.keys.shape[2] for state in states.values()):
        raise ValueError(f"a chunk before the last must be a multiple of {segment_length} tokens")
    rows = F.pad(tokens, (0, -length % segment_length)).view(-1, segment_length)  # (B*N, L)
    if memory:
        run = SegmentedRun(torch.ones_like(tokens, dtype=torch.bool), segment_length, states)
    else:
        run = SegmentedRun(torch.ones_like(rows, dtype=torch.bool), segment_length)
    with segmented(model, run):
        hidden = model.get_decoder()(rows, use_cache=False).last_hidden_state  # (B*N, L, d)
    return hidden.reshape(batch, -1, hidden.shape[-1])[:, :length], run.states


def detach(states: States) -> States:
    """The same memory without the graph that led to it."""
    return {layer: state.detach() for layer, state in states.items()}
