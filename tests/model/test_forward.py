"""forward_documents and memory_mode, each mode against a slow loop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini.memory.eviction import block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.forward import forward_documents, memory_mode
from infini.model.modules import infini_parameters
from infini.model.retrofit import remove, retrofit, sliding_window
from infini.model.segmented.run import run_segments

L, T = 8, 40
W, S = 6, 2
METHODS: dict[str, dict[str, Any]] = {
    "replace": {"method": "replace", "segment_length": L, "init": "random"},
    "parallel": {"method": "parallel", "segment_length": L, "alpha": 1.0},
    "window": {"method": "window", "window": W, "sinks": S, "update": "gated_delta"},
    "retained": {"method": "window", "window": W, "sinks": S, "update": "none", "retained": 3},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retention blocks short, so that a short text has many."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)


@pytest.fixture(params=METHODS)
def retrofitted_model(request: pytest.FixtureRequest, model: PreTrainedModel) -> PreTrainedModel:
    """A memory in the first layer: its writes do not depend on what it read."""
    torch.manual_seed(1)
    retrofit(model, layers=[0], **METHODS[request.param])
    for tensor in infini_parameters(model).values():
        torch.nn.init.normal_(tensor, std=0.3)
    return model


@pytest.fixture
def texts() -> Tensor:
    """Two texts that agree at first, as long as the window holds all tokens."""
    tokens = torch.randint(300, (2, T), generator=torch.Generator().manual_seed(2))
    tokens[1, :9] = tokens[0, :9]
    return tokens


def token_by_token(model: PreTrainedModel, text: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """Yield hidden states, (1, 1, d), and the cache that the next token gets, to be changed."""
    cache = None
    for token in text.split(1):
        arguments = {CACHE: cache, "use_cache": True}
        out = model.get_decoder()(token[None], **arguments)
        cache = cache_of(out)
        yield out.last_hidden_state, cache


def with_memory_of(model: PreTrainedModel, text: Tensor, other: Tensor) -> Tensor:
    """Read `text` token by token, with the matrix and retained pairs of `other` before each."""
    rows = []
    pairs = zip(token_by_token(model, text), token_by_token(model, other), strict=True)
    for (hidden, cache), (_, other_cache) in pairs:
        rows.append(hidden)
        for index, state in other_cache.states.items():
            cache.states[index] = cache.states[index]._replace(
                matrix=state.matrix, retained=state.retained
            )
    return torch.cat(rows, 1)


def without_retained(model: PreTrainedModel, text: Tensor) -> Tensor:
    """Read `text` token by token, its retained pairs removed before each."""
    rows = []
    for hidden, cache in token_by_token(model, text):
        rows.append(hidden)
        for state in cache.states.values():
            if state.retained is not None:
                state.retained.positions.fill_(-1)
    return torch.cat(rows, 1)


def with_states_of(model: PreTrainedModel, text: Tensor, other: Tensor) -> Tensor:
    """Read `text` segment by segment, each with the memory that `other` has left so far."""
    rows, states = [], None
    for segment, other_segment in zip(text.split(L), other.split(L), strict=True):
        rows.append(run_segments(model, segment[None], L, states)[0])
        _, states = run_segments(model, other_segment[None], L, states)
    return torch.cat(rows, 1)


@torch.no_grad()
def test_memory_swapped_reads_the_other_documents_memory(
    retrofitted_model: PreTrainedModel, texts: Tensor
) -> None:
    window = retrofitted_model.infini_config["method"] == "window"
    reference = with_memory_of if window else with_states_of
    own, _ = forward_documents(retrofitted_model, texts, L)
    with memory_mode(retrofitted_model, "swapped"):
        swapped, _ = forward_documents(retrofitted_model, texts, L)
    for row, other in ((0, 1), (1, 0)):
        torch.testing.assert_close(
            swapped[row : row + 1], reference(retrofitted_model, texts[row], texts[other])
        )
        torch.testing.assert_close(
            own[row : row + 1], reference(retrofitted_model, texts[row], texts[row])
        )
    assert not torch.allclose(swapped, own, atol=1e-3)
    assert torch.equal(forward_documents(retrofitted_model, texts, L)[0], own)  # as before


@torch.no_grad()
def test_memory_off_equals_no_memory(
    model: PreTrainedModel, retrofitted_model: PreTrainedModel, texts: Tensor
) -> None:
    with memory_mode(retrofitted_model, "off"):
        off, _ = forward_documents(retrofitted_model, texts, L)
    if retrofitted_model.infini_config["method"] != "window":
        alone, _ = forward_documents(retrofitted_model, texts.reshape(-1, L), L)
        torch.testing.assert_close(off, alone.reshape(2, T, -1))
        return
    if retrofitted_model.infini_config["retained"]:  # the window moves by blocks
        for row in (0, 1):
            alone = without_retained(retrofitted_model, texts[row])
            torch.testing.assert_close(off[row : row + 1], alone)
        return
    with sliding_window(remove(retrofitted_model), W, S):
        torch.testing.assert_close(off, forward_documents(model, texts, L)[0])


def test_memory_swapped_has_gradients_of_the_other_document(
    retrofitted_model: PreTrainedModel, texts: Tensor
) -> None:
    embedded = retrofitted_model.get_input_embeddings()(texts).detach().requires_grad_()
    retrofitted_model.get_input_embeddings().register_forward_hook(lambda *_: embedded)
    with memory_mode(retrofitted_model, "swapped"):
        hidden, _ = forward_documents(retrofitted_model, texts, L)
    hidden[0, -1, 0].backward()
    assert embedded.grad is not None
    assert embedded.grad[1, 9 : T - L].abs().max() > 0
