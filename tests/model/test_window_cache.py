"""A window's state between two calls: its tensors and back, its samples, its size."""

import pytest
import torch
from transformers import PreTrainedModel

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.window_cache import WindowCache

W, S = 7, 3
LENGTHS = [4, 40]  # short: the base's own keys and values; long: sinks, window and memory


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return infini.retrofit(tiny("llama"), "window", window=W, sinks=S)


def read(model: PreTrainedModel, tokens: torch.Tensor) -> WindowCache:
    cache: WindowCache = cache_of(model(tokens))
    return cache


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_tensors_and_back(model: PreTrainedModel, length: int) -> None:
    cache, more = read(model, text(2, length)), text(2, 11)
    tensors = {name: tensor.clone() for name, tensor in cache.tensors().items()}
    again = WindowCache.of_tensors(cache.fingerprint, tensors)
    assert not again.checked
    assert again.nbytes == cache.nbytes
    assert again.tensors().keys() == tensors.keys()
    assert all(torch.equal(x, tensors[name]) for name, x in again.tensors().items())
    expected = model(more, **{CACHE: cache}).logits
    assert torch.equal(model(more, **{CACHE: again}).logits, expected)
    del tensors["counts"]
    with pytest.raises(KeyError, match="counts"):
        WindowCache.of_tensors(cache.fingerprint, tensors)


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_samples_are_chosen_repeated_and_forgotten(model: PreTrainedModel, length: int) -> None:
    book, more = text(3, length), text(4, 9)
    whole = model(more[:3], **{CACHE: read(model, book)}).logits
    cache = read(model, book)
    cache.reorder_cache(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    logits = model(more[[2, 2, 0, 0]], **{CACHE: cache}).logits
    torch.testing.assert_close(logits, whole[[2, 2, 0, 0]], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="holds 4 samples, the batch has 3"):
        model(more[:3], **{CACHE: cache})
    with pytest.raises(InputError, match="cannot forget"):
        cache.crop(-1)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    assert torch.equal(model(book, **{CACHE: cache}).logits, model(book).logits)


@torch.no_grad()
def test_its_size_is_that_of_the_memory_and_the_tokens_held(model: PreTrainedModel) -> None:
    D, G, layers = 4, 2, 3
    memory, exact = 4 * G * D * D, 2 * 4 * G * D * (W - 1 + S)
    for tokens in (W + S + 1, 1000):
        assert read(model, text(1, tokens)).nbytes == layers * (memory + exact) + 8  # counts
