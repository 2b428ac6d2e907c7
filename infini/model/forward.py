"""A document read as a version reads it, in constant memory; and whose memory it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from infini.choices import MemoryMode
from infini.memory.associative import AssociativeMemory
from infini.memory.attention import InfiniAttention
from infini.memory.retained import RetainedPairs
from infini.model.segmented.run import States
from infini.model.segmented.segments import run_segments
from infini.model.window.layer import window_layers


def forward_documents(
    model: PreTrainedModel, tokens: Tensor, segment_length: int, states: States | None = None
) -> tuple[Tensor, States]:
    """The last hidden states, (B, T, d), of (B, T) documents, and the memory after them.

    By window, a document whole, where the model has one; else by segments, the untouched base
    too, from `states` on: the memory left by the documents' earlier chunks.
    """
    if not window_layers(model):
        return run_segments(model, tokens, segment_length, states)
    assert not states, "through a window, documents are read whole"
    out = model.get_decoder()(tokens, use_cache=False)
    return out.last_hidden_state, {}


@contextmanager
def memory_mode(model: PreTrainedModel, use: MemoryMode) -> Iterator[None]:
    """Within it, every document reads its own memory, none ("off"), or another document's.

    "swapped": the first half of a batch reads the memories of the second, and the second those of
    the first. Batches are even then, and their documents of one length.
    """
    memories = [
        m
        for m in model.modules()
        if isinstance(m, InfiniAttention | AssociativeMemory | RetainedPairs)
    ]
    before = [memory.use for memory in memories]
    for memory in memories:
        memory.use = use
    try:
        yield
    finally:
        for memory, earlier in zip(memories, before, strict=True):
            memory.use = earlier


@contextmanager
def window_override(model: PreTrainedModel, size: int | None) -> Iterator[None]:
    """Within it, a model with a window sees so many tokens; None: its own."""
    settings = None if size is None else model.get_decoder().infini
    if settings is None:
        yield
        return
    before, settings["window"] = settings["window"], size
    try:
        yield
    finally:
        settings["window"] = before
