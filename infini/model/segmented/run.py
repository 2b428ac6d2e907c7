"""A run over documents, as the modules of ours see it: whose segments the batch's rows are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from infini.memory import InfiniAttention, MemoryState
from infini.memory.packing import Packing

States = dict[int, MemoryState]  # by layer


@dataclass
class Run:
    """What our layers must know: whose segments the batch's rows are, the memory so far."""

    packing: Packing  # where the real tokens of each document are
    tokens: int  # T of a document, padding included
    segment_length: int
    states: States = field(default_factory=dict)


class UsesRun(nn.Module):
    """What is told, while a run lasts, whose segments the rows are."""

    run: Run | None = None


@contextmanager
def running(model: nn.Module, run: Run) -> Iterator[None]:
    """Within it, our modules take the rows of the batch for the segments of `run`."""
    ours = [module for module in model.modules() if isinstance(module, UsesRun)]
    for module in ours:
        module.run = run
    try:
        yield
    finally:
        for module in ours:
            module.run = None


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
