"""Whose memory a document reads: its own, none, another's; each against a slow loop."""

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
from infini.model.segmented.segments import run_segments

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
    """Of kept pairs, so that a short text has many."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)


@pytest.fixture(params=METHODS)
def remembering(request: pytest.FixtureRequest, model: PreTrainedModel) -> PreTrainedModel:
    """A memory in the first layer: what it is written does not depend on what was read."""
    torch.manual_seed(1)
    retrofit(model, layers=[0], **METHODS[request.param])
    for tensor in infini_parameters(model).values():
        torch.nn.init.normal_(tensor, std=0.3)
    return model


@pytest.fixture
def texts() -> Tensor:
    """Two; alike at first, as long as a window keeps its text as the base does."""
    found = torch.randint(300, (2, T), generator=torch.Generator().manual_seed(2))
    found[1, :9] = found[0, :9]
    return found


def token_by_token(model: PreTrainedModel, text: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """Hidden states, (1, 1, d), and the cache that the next token is given, to be changed."""
    cache = None
    for token in text.split(1):
        arguments = {CACHE: cache, "use_cache": True}
        out = model.get_decoder()(token[None], **arguments)
        cache = cache_of(out)
        yield out.last_hidden_state, cache


def with_memory_of(model: PreTrainedModel, text: Tensor, other: Tensor) -> Tensor:
    """`text` read token by token, matrix and kept pairs put in place by hand before every token."""
    rows = []
    pairs = zip(token_by_token(model, text), token_by_token(model, other), strict=True)
    for (hidden, mine), (_, theirs) in pairs:
        rows.append(hidden)
        for index, state in theirs.states.items():
            mine.states[index] = mine.states[index]._replace(
                matrix=state.matrix, retained=state.retained
            )
    return torch.cat(rows, 1)


def without_kept(model: PreTrainedModel, text: Tensor) -> Tensor:
    """`text` read token by token, its kept pairs taken away before every token."""
    rows = []
    for hidden, cache in token_by_token(model, text):
        rows.append(hidden)
        for state in cache.states.values():
            if state.retained is not None:
                state.retained.positions.fill_(-1)
    return torch.cat(rows, 1)


def with_states_of(model: PreTrainedModel, text: Tensor, other: Tensor) -> Tensor:
    """`text` read segment by segment, each on the memory that `other` has left so far."""
    rows, states = [], None
    for mine, theirs in zip(text.split(L), other.split(L), strict=True):
        rows.append(run_segments(model, mine[None], L, states)[0])
        _, states = run_segments(model, theirs[None], L, states)
    return torch.cat(rows, 1)


@torch.no_grad()
def test_swapped_is_the_memory_of_the_other_half(
    remembering: PreTrainedModel, texts: Tensor
) -> None:
    window = remembering.infini_config["method"] == "window"
    slowly = with_memory_of if window else with_states_of
    own, _ = forward_documents(remembering, texts, L)
    with memory_mode(remembering, "swapped"):
        found, _ = forward_documents(remembering, texts, L)
    for row, other in ((0, 1), (1, 0)):
        torch.testing.assert_close(
            found[row : row + 1], slowly(remembering, texts[row], texts[other])
        )
        torch.testing.assert_close(own[row : row + 1], slowly(remembering, texts[row], texts[row]))
    assert not torch.allclose(found, own, atol=1e-3)
    assert torch.equal(forward_documents(remembering, texts, L)[0], own)  # as before


@torch.no_grad()
def test_off_is_every_segment_alone_or_the_bare_window(
    model: PreTrainedModel, remembering: PreTrainedModel, texts: Tensor
) -> None:
    with memory_mode(remembering, "off"):
        found, _ = forward_documents(remembering, texts, L)
    if remembering.infini_config["method"] != "window":
        alone, _ = forward_documents(remembering, texts.reshape(-1, L), L)
        torch.testing.assert_close(found, alone.reshape(2, T, -1))
        return
    if remembering.infini_config["retained"]:  # the window moves by blocks
        for row in (0, 1):
            alone = without_kept(remembering, texts[row])
            torch.testing.assert_close(found[row : row + 1], alone)
        return
    with sliding_window(remove(remembering), W, S):
        torch.testing.assert_close(found, forward_documents(model, texts, L)[0])


def test_gradient_reaches_the_other_documents_writes(
    remembering: PreTrainedModel, texts: Tensor
) -> None:
    embedded = remembering.get_input_embeddings()(texts).detach().requires_grad_()
    remembering.get_input_embeddings().register_forward_hook(lambda *_: embedded)
    with memory_mode(remembering, "swapped"):
        hidden, _ = forward_documents(remembering, texts, L)
    hidden[0, -1, 0].backward()
    assert embedded.grad is not None
    assert embedded.grad[1, 9 : T - L].abs().max() > 0
