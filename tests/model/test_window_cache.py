"""WindowCache: tensors, samples, size."""

import pytest
import torch
from transformers import PreTrainedModel

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.memory.eviction import block_layout, num_recent
from infini.model.architectures import CACHE, cache_of
from infini.model.window.cache import WindowCache

W, S = 7, 3
LENGTHS = [4, 80]  # the base's own keys and values; sinks, window and memory


@pytest.fixture(scope="module", params=[0, 4], ids=["", "retained"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return infini.retrofit(tiny("llama"), "window", window=W, sinks=S, retained=request.param)


def read(model: PreTrainedModel, tokens: torch.Tensor) -> WindowCache:
    cache: WindowCache = cache_of(model(tokens))
    return cache


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_window_cache_from_tensors_round_trip(model: PreTrainedModel, length: int) -> None:
    cache, more = read(model, text(2, length)), text(2, 11)
    tensors = {name: tensor.clone() for name, tensor in cache.tensors().items()}
    again = WindowCache.from_tensors(cache.fingerprint, tensors)
    assert again.owner is None  # checked by the model that adopts it
    assert again.nbytes == cache.nbytes
    assert again.tensors().keys() == tensors.keys()
    assert all(torch.equal(x, tensors[name]) for name, x in again.tensors().items())
    expected = model(more, **{CACHE: cache}).logits
    assert torch.equal(model(more, **{CACHE: again}).logits, expected)
    del tensors["token_counts"]
    with pytest.raises(KeyError, match="token_counts"):
        WindowCache.from_tensors(cache.fingerprint, tensors)


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_window_cache_reorder_repeat_and_reset(model: PreTrainedModel, length: int) -> None:
    book, more = text(3, length), text(4, 9)
    whole = model(more[:3], **{CACHE: read(model, book)}).logits
    cache = read(model, book)
    cache.reorder_cache(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    logits = model(more[[2, 2, 0, 0]], **{CACHE: cache}).logits
    torch.testing.assert_close(logits, whole[[2, 2, 0, 0]], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="holds 4 samples, the batch has 3"):
        model(more[:3], **{CACHE: cache})
    with pytest.raises(InputError, match="cannot remove its last tokens"):
        cache.crop(-1)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    assert torch.equal(model(book, **{CACHE: cache}).logits, model(book).logits)


@torch.no_grad()
def test_window_cache_nbytes_is_constant(model: PreTrainedModel) -> None:
    D, G, layers, K = 4, 2, 3, model.infini_config["retained"]
    held = num_recent(W) if K else W - 1
    memory, exact = 4 * G * D * D, 2 * 4 * G * D * (held + S)
    figures = 2 * 4 * (K + held) + 8 * K if K else 0  # scores, attention; positions
    pairs = G * (2 * 4 * D * K + figures)
    for tokens in (W + S + 1, 1000):
        assert read(model, text(1, tokens)).nbytes == layers * (memory + exact + pairs) + 8


@torch.no_grad()
def test_window_cache_reorder_moves_retained_pairs(model: PreTrainedModel) -> None:
    cache = read(model, text(3, 80))
    states = dict(cache.states)
    cache.reorder_cache(torch.tensor([2, 0]))
    for index, state in states.items():
        if model.infini_config["retained"]:
            assert state.retained is not None
            assert state.retained.positions.min() >= S
        for name, tensor in state.tensors().items():
            assert torch.equal(cache.states[index].tensors()[name], tensor[[2, 0]])


@torch.no_grad()
def test_window_cache_continues_at_a_block_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pairs of the first block are beyond the base's own window, whoever has read it."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)
    model, tokens = tiny("mistral_5"), text(1, 30)
    infini.retrofit(model, "window", window=5, sinks=3, retained=2, update="none")
    whole = model(tokens, use_cache=False).logits
    rest = model(tokens[:, 8:], **{CACHE: read(model, tokens[:, :8])}).logits
    torch.testing.assert_close(rest, whole[:, 8:], rtol=1e-4, atol=1e-5)
