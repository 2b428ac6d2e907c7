"""Reads documents in constant memory, and selects whose memory they read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.choices import MemoryMode
from infini.memory.associative import AssociativeMemory
from infini.memory.attention import InfiniAttention
from infini.memory.eviction import RetentionPolicy
from infini.memory.retained import RetainedPairs
from infini.model.modules import retained_modules, window_layers
from infini.model.segmented.run import LayerStates, run_segments


def forward_documents(
    model: PreTrainedModel,
    input_ids: Tensor,
    segment_length: int,
    states: LayerStates | None = None,
) -> tuple[Tensor, LayerStates]:
    """Read documents through the model's window, or else by segments.

    Args:
        model: a retrofitted model, or a base, which is read by segments.
        input_ids: the documents' tokens, (B, T).
        segment_length: tokens of a segment.
        states: by segments, the memory after the documents' earlier chunks, by layer.

    Returns:
        The last hidden states, (B, T, d), and the memory after the tokens, by layer; empty for a
        window, through which a document is read whole.
    """
    if not window_layers(model):
        return run_segments(model, input_ids, segment_length, states)
    assert not states, "through a window, documents are read whole"
    out = model.get_decoder()(input_ids, use_cache=False)
    return out.last_hidden_state, {}


@contextmanager
def memory_mode(model: PreTrainedModel, mode: MemoryMode) -> Iterator[None]:
    """Select whose memory every document reads within the block.

    Evaluation and training use it. It changes the model, in every thread: no other thread may call
    the model meanwhile.

    Args:
        model: a retrofitted model.
        mode: "own", "off" (no memory), or "swapped": the first half of a batch reads the memories
            of the second half, and the other way round; batches must be even and their documents
            of equal length.
    """
    memories = [
        module
        for module in model.modules()
        if isinstance(module, InfiniAttention | AssociativeMemory | RetainedPairs)
    ]
    with _attribute(memories, "mode", mode):
        yield


@contextmanager
def window_override(model: PreTrainedModel, window: int | None) -> Iterator[None]:
    """Read through a window of another size within the block.

    Evaluation and training use it. It changes the model, in every thread: no other thread may call
    the model meanwhile.

    Args:
        model: a model with a window.
        window: last tokens that are attended to; None: the model's own.
    """
    if window is None:
        yield
        return
    decoder = model.get_decoder()
    config = replace(decoder.retrofit_config, window=window)
    with _attribute([decoder], "retrofit_config", config):
        yield


@contextmanager
def policy_override(model: PreTrainedModel, policy: RetentionPolicy) -> Iterator[None]:
    """Read through another retention policy within the block; see `window_override`.

    Args:
        model: a model with retained pairs.
        policy: a policy that has no fitted tensors.
    """
    with _attribute(list(retained_modules(model).values()), "policy", policy):
        yield


@contextmanager
def _attribute(modules: Sequence[nn.Module], name: str, value: object) -> Iterator[None]:
    """Set an attribute of modules within the block."""
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, earlier in zip(modules, before, strict=True):
            setattr(module, name, earlier)
