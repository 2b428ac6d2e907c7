"""The state between two calls: its size, its samples, its file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

import infini
from architectures import SIZES, L, text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.segmented.cache import SegmentedCache

Retrofitted = Callable[[str, str], PreTrainedModel]
SEGMENTED = ["beside", "taught", "fresh"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def read(model: PreTrainedModel, tokens: torch.Tensor) -> SegmentedCache:
    return cache_of(model(tokens))


@pytest.mark.parametrize("kind", SEGMENTED)
@torch.no_grad()
def test_the_state_has_one_size(kind: str, retrofitted: Retrofitted) -> None:
    model = retrofitted("qwen3", kind)
    short, long = read(model, text(2, 2 * L)), read(model, text(2, 20 * L))
    assert short.nbytes == long.nbytes
    # A segment begun keeps its keys and values, of the layers that are the base's own.
    assert read(model, text(2, 2 * L + 5)).nbytes > short.nbytes


@torch.no_grad()
def test_no_more_is_kept_than_the_segments_begun(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("llama", "beside"), text(2, 6 * L)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0  # one of the two samples is always within a segment
    cache = None
    for start in range(0, 6 * L, 4):
        end = start + 4
        chunk = model(tokens[:, start:end], attention_mask=mask[:, :end], **{CACHE: cache})
        cache = cache_of(chunk)
        assert cache.live.shape[1] == cache.base.get_seq_length() <= 2 * L


@pytest.mark.parametrize("kind", [*SEGMENTED, "beside_full", "taught_full"])
@torch.no_grad()
def test_the_state_survives_a_file(kind: str, retrofitted: Retrofitted, tmp_path: Path) -> None:
    model = retrofitted("qwen3", kind)
    book, more = text(2, 45), text(2, 30)
    after = model(more, **{CACHE: read(model, book)}).logits
    infini.save_memory(read(model, book), tmp_path / "book.safetensors")
    model.save_pretrained(tmp_path / "adapter")
    model = infini.load(tmp_path / "adapter", tiny("qwen3"))
    state = infini.load_memory(tmp_path / "book.safetensors")
    assert torch.equal(model(more, **{CACHE: state}).logits, after)
    if kind not in SEGMENTED:
        return
    # generate takes it for what stands before the new tokens
    state = infini.load_memory(tmp_path / "book.safetensors", model)
    going_on = model.generate(more, **{CACHE: state}, **GREEDY)[:, 30:]
    expected = model.generate(torch.cat([book, more], 1), **GREEDY)[:, 75:]
    assert torch.equal(going_on, expected)


@pytest.mark.parametrize("kind", SEGMENTED)
@torch.no_grad()
def test_samples_of_a_state_can_be_chosen(kind: str, retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", kind)
    book, more = text(2, 2 * L + 5), text(3, 2 * L)
    mask = torch.ones_like(book)
    mask[0, :7] = 0  # the samples' segments begun are of different lengths
    chosen = [1, 0, 1]
    expected = [
        model(more[i : i + 1], **{CACHE: read(model, book[j : j + 1, 7 * (j == 0) :])}).logits
        for i, j in enumerate(chosen)
    ]
    for choose in (SegmentedCache.reorder_cache, SegmentedCache.batch_select_indices):
        state = cache_of(model(book, attention_mask=mask))
        choose(state, torch.tensor(chosen))
        logits = model(more, **{CACHE: state}).logits
        torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-5)
    state = cache_of(model(book, attention_mask=mask))
    state.batch_repeat_interleave(2)  # the samples are 0, 0, 1, 1
    logits = model(more[[1, 1, 0, 2]], **{CACHE: state}).logits
    twice = torch.cat([expected[i] for i in (1, 1, 0, 2)])
    torch.testing.assert_close(logits, twice, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_state_that_is_reset_is_a_new_one(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "beside")
    state = read(model, text(2, L + 3))
    state.reset()
    assert (state.get_seq_length(), state.nbytes) == (0, 0)
    again = model(text(1, 20), **{CACHE: state}).logits
    assert torch.equal(again, model(text(1, 20)).logits)


def test_a_state_takes_its_own_batch_and_forgets_nothing(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "beside")
    state = read(model, text(2, 3))
    with pytest.raises(InputError, match="holds 2 samples, the batch has 1"):
        model(text(1, 3), **{CACHE: state})
    with pytest.raises(InputError, match="cannot forget"):
        state.crop(-1)


def test_a_foreign_memory_is_refused(retrofitted: Retrofitted, tmp_path: Path) -> None:
    model = retrofitted("llama", "beside")
    infini.save_memory(read(model, text(1, 20)), tmp_path / "m.safetensors")
    model.get_decoder().infini["segment_length"] = L - 1
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "m.safetensors", model)
    model.get_decoder().infini["segment_length"] = L
    infini.load_memory(tmp_path / "m.safetensors", model)
    model.get_decoder().layers[0].alpha.data += 1
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "m.safetensors", model)
    state = infini.load_memory(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="written by other memory layers"):
        model(text(1, 3), **{CACHE: state})
    with pytest.raises(InputError, match=r"m.safetensors: the model has no memory"):
        infini.load_memory(tmp_path / "m.safetensors", tiny("llama"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="not a memory that infini saved"):
        infini.load_memory(tmp_path / "adapter/infini.safetensors")
    with pytest.raises(InputError, match="nowhere: no readable safetensors file"):
        infini.load_memory(tmp_path / "nowhere")


@torch.no_grad()
def test_a_memory_that_is_not_finite_is_refused(retrofitted: Retrofitted, tmp_path: Path) -> None:
    state = read(retrofitted("llama", "beside"), text(1, 20))
    state.memory[2].matrix[0, 0, 0, 0] = torch.inf
    infini.save_memory(state, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m.safetensors: memory.2.matrix has values that are not"):
        infini.load_memory(tmp_path / "m.safetensors")


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_memory needs the cache that a model"):
        infini.save_memory({}, tmp_path / "n.safetensors")
    config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)
    model = infini.retrofit(MistralForCausalLM(config), segment_length=L, segmented=False)
    with pytest.raises(InputError, match="sliding windows and full attention is not saved"):
        infini.save_memory(read(model, text(1, 20)), tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()
