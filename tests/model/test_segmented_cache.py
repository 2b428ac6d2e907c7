"""Cache of a segmented model: its size, its samples, its file."""

from collections.abc import Callable
from dataclasses import replace
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
SEGMENTED = ["parallel", "replace_teacher", "replace_random"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def cache_after(model: PreTrainedModel, tokens: torch.Tensor) -> SegmentedCache:
    return cache_of(model(tokens))


@pytest.mark.parametrize("kind", SEGMENTED)
@torch.no_grad()
def test_cache_size_does_not_depend_on_length(kind: str, retrofitted: Retrofitted) -> None:
    model = retrofitted("qwen3", kind)
    short, long = cache_after(model, text(2, 2 * L)), cache_after(model, text(2, 20 * L))
    assert short.nbytes == long.nbytes
    # An incomplete segment has keys and values, in the layers that are the base's own
    assert cache_after(model, text(2, 2 * L + 5)).nbytes > short.nbytes


@torch.no_grad()
def test_cache_keeps_incomplete_segments_only(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("llama", "parallel"), text(2, 6 * L)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0  # one of the two samples is always within a segment
    cache = None
    for start in range(0, 6 * L, 4):
        end = start + 4
        chunk = model(tokens[:, start:end], attention_mask=mask[:, :end], **{CACHE: cache})
        cache = cache_of(chunk)
        assert cache.token_mask.shape[1] == cache.base_cache.get_seq_length() <= 2 * L


@pytest.mark.parametrize("kind", [*SEGMENTED, "parallel_full", "replace_teacher_full"])
@torch.no_grad()
def test_save_memory_and_load_memory_continue_bit_for_bit(
    kind: str, retrofitted: Retrofitted, tmp_path: Path
) -> None:
    model = retrofitted("qwen3", kind)
    book, more = text(2, 45), text(2, 30)
    after = model(more, **{CACHE: cache_after(model, book)}).logits
    infini.save_memory(cache_after(model, book), tmp_path / "book.safetensors")
    model.save_pretrained(tmp_path / "adapter")
    model = infini.load(tmp_path / "adapter", tiny("qwen3"))
    state = infini.load_memory(tmp_path / "book.safetensors")
    assert torch.equal(model(more, **{CACHE: state}).logits, after)
    if kind not in SEGMENTED:
        return
    # generate continues after what the cache has read
    state = infini.load_memory(tmp_path / "book.safetensors", model)
    continued = model.generate(more, **{CACHE: state}, **GREEDY)[:, 30:]
    expected = model.generate(torch.cat([book, more], 1), **GREEDY)[:, 75:]
    assert torch.equal(continued, expected)


@pytest.mark.parametrize("kind", SEGMENTED)
@torch.no_grad()
def test_cache_selects_and_repeats_samples(kind: str, retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", kind)
    book, more = text(2, 2 * L + 5), text(3, 2 * L)
    mask = torch.ones_like(book)
    mask[0, :7] = 0  # the samples' incomplete segments differ in length
    indices = [1, 0, 1]
    expected = [
        model(
            more[i : i + 1], **{CACHE: cache_after(model, book[j : j + 1, 7 * (j == 0) :])}
        ).logits
        for i, j in enumerate(indices)
    ]
    for select in (SegmentedCache.reorder_cache, SegmentedCache.batch_select_indices):
        state = cache_of(model(book, attention_mask=mask))
        select(state, torch.tensor(indices))
        logits = model(more, **{CACHE: state}).logits
        torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-5)
    state = cache_of(model(book, attention_mask=mask))
    state.batch_repeat_interleave(2)  # the samples are 0, 0, 1, 1
    logits = model(more[[1, 1, 0, 2]], **{CACHE: state}).logits
    twice = torch.cat([expected[i] for i in (1, 1, 0, 2)])
    torch.testing.assert_close(logits, twice, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cache_reset_is_empty(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    state = cache_after(model, text(2, L + 3))
    state.reset()
    assert (state.get_seq_length(), state.nbytes) == (0, 0)
    again = model(text(1, 20), **{CACHE: state}).logits
    assert torch.equal(again, model(text(1, 20)).logits)


def test_cache_rejects_other_batch_sizes_and_crop(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    state = cache_after(model, text(2, 3))
    with pytest.raises(InputError, match="holds 2 samples, the batch has 1"):
        model(text(1, 3), **{CACHE: state})
    with pytest.raises(InputError, match="cannot remove its last tokens"):
        state.crop(-1)


def test_load_memory_rejects_other_memory_layers(retrofitted: Retrofitted, tmp_path: Path) -> None:
    model = retrofitted("llama", "parallel")
    infini.save_memory(cache_after(model, text(1, 20)), tmp_path / "m.safetensors")
    config = model.get_decoder().retrofit_config
    model.get_decoder().retrofit_config = replace(config, segment_length=L - 1)
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "m.safetensors", model)
    model.get_decoder().retrofit_config = config
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
def test_load_memory_rejects_values_that_are_not_finite(
    retrofitted: Retrofitted, tmp_path: Path
) -> None:
    state = cache_after(retrofitted("llama", "parallel"), text(1, 20))
    state.memory[2].matrix[0, 0, 0, 0] = torch.inf
    infini.save_memory(state, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m.safetensors: memory.2.matrix has values that are not"):
        infini.load_memory(tmp_path / "m.safetensors")


def test_save_memory_rejects_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="state must be the cache that a model with a memory returns, got a dict"
    ):
        infini.save_memory({}, tmp_path / "n.safetensors")
    config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)
    model = infini.retrofit(MistralForCausalLM(config), segment_length=L, segmented=False)
    with pytest.raises(
        InputError, match="save_memory does not support a base with sliding windows"
    ):
        infini.save_memory(cache_after(model, text(1, 20)), tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()
