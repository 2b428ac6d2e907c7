"""`pinned=` of a window model: calls, caches, generate, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

import infini
from architectures import WINDOWED, text, tiny
from infini.errors import InputError
from infini.memory.eviction import AdaKV, block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.window.cache import WindowCache

W, S, K = 7, 3, 4
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retention blocks short, so that a short text has many."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 5)  # W + S ends a block


@pytest.fixture
def model() -> PreTrainedModel:
    return infini.retrofit(tiny("llama"), "window", window=W, sinks=S, retained=K)


def mask(tokens: Tensor, *pinned: int) -> Tensor:
    """Return the mask of a batch in which every sample pins these tokens."""
    out = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    out[:, list(pinned)] = True
    return out


def read(
    model: PreTrainedModel, tokens: Tensor, pinned: Tensor, chunks: list[int]
) -> tuple[Tensor, WindowCache]:
    """Read a text in chunks: logits, and the cache after it."""
    cache, logits = None, []
    for part, own in zip(tokens.split(chunks, 1), pinned.split(chunks, 1), strict=True):
        out = model(part, pinned=own if own.any() else None, **{CACHE: cache}, use_cache=True)
        cache = cache_of(out)
        logits.append(out.logits)
    return torch.cat(logits, 1), cache


def are_retained(cache: WindowCache, *pinned: int, sample: int = 0) -> bool:
    """Whether these tokens are among the retained pairs of every layer and head."""
    positions = [state.retained.positions[sample] for state in cache.states.values()]
    return all(bool((x == token).any(-1).all()) for x in positions for token in pinned)


@torch.no_grad()
def test_pinned_tokens_in_any_chunks_equal_one_pass(model: PreTrainedModel) -> None:
    tokens = text(2, 90)
    pinned = mask(tokens, 0, 3)  # a sink, and the token that leaves at W + S
    pinned[1, [4, 40]] = True
    whole = model(tokens, pinned=pinned, use_cache=False).logits
    assert not torch.allclose(whole, model(tokens).logits)
    for chunks in ([W + S, 80], [90], [4, 5, 1, 80], [1] * 90):
        logits, cache = read(model, tokens, pinned, chunks)
        torch.testing.assert_close(logits, whole, **CLOSE)
        assert cache.pinned.tolist() == [[-1, -1, 3], [3, 4, 40]]
        assert are_retained(cache, 3)
        assert are_retained(cache, 3, 4, 40, sample=1)


@pytest.mark.parametrize("name", WINDOWED)
def test_pinned_reaches_the_decoder_of_every_base(name: str) -> None:
    model = infini.retrofit(tiny(name), "window", window=W, sinks=S, retained=K)
    with pytest.raises(InputError, match=r"pinned must be \(2, 9\)"):
        model(text(2, 9), pinned=torch.ones(2, 8, dtype=torch.bool))


@torch.no_grad()
def test_pinned_tokens_are_attended_to_after_many_windows(model: PreTrainedModel) -> None:
    tokens, more = text(1, 600), text(1, 1)  # beyond the base's context of 256
    cache = cache_of(model(tokens, pinned=mask(tokens, 3, 4, 5)))
    assert are_retained(cache, 3, 4, 5)
    assert not are_retained(cache_of(model(tokens)), 3)
    expected = model(more, **{CACHE: copy.deepcopy(cache)}).logits
    for layer in cache.states:
        for slot in range(3):
            changed = copy.deepcopy(cache)
            retained = changed.states[layer].retained
            assert retained.positions[0, :, slot].tolist() == [3 + slot] * 2
            retained.values[:, :, slot] += 100
            assert not torch.allclose(model(more, **{CACHE: changed}).logits, expected)


@torch.no_grad()
def test_left_padded_pins_equal_each_sample_alone(model: PreTrainedModel) -> None:
    tokens, lengths = text(3, 60), [60, 41, W + S]
    pinned = mask(tokens, 50, 55)
    pinned[1, [22, 23]] = True
    attention_mask = torch.arange(60) >= 60 - torch.tensor(lengths)[:, None]
    padded = pinned | ~attention_mask  # padding takes no slot
    logits = model(tokens, attention_mask=attention_mask.long(), pinned=padded).logits
    for i, length in enumerate(lengths):
        one, own = tokens[i : i + 1, -length:], pinned[i : i + 1, -length:]
        alone = model(one, pinned=own).logits
        torch.testing.assert_close(logits[i : i + 1, -length:], alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("length", [6, W + S, 60])
def test_cache_carries_pinned_tokens(model: PreTrainedModel, length: int, tmp_path: Path) -> None:
    tokens, more = text(2, length), text(2, 50)
    pinned = mask(tokens, 3)
    pinned[1, 5] = True
    _, cache = read(model, tokens, pinned, [length])
    infini.save_memory(cache, tmp_path / "memory.safetensors")
    expected = model(more, **{CACHE: copy.deepcopy(cache)}).logits
    whole = model(torch.cat([tokens, more], 1), pinned=torch.cat([pinned, 0 * more > 0], 1)).logits
    torch.testing.assert_close(expected, whole[:, length:], **CLOSE)
    loaded = infini.load_memory(tmp_path / "memory.safetensors", model)
    assert torch.equal(model(more, **{CACHE: loaded}).logits, expected)
    assert are_retained(loaded, 3)
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(model(more[[1, 0]], **{CACHE: cache}).logits, expected[[1, 0]])
    assert are_retained(cache, 3, 5, sample=0)
    cache.reset()
    assert torch.equal(model(more, **{CACHE: cache}).logits, model(more).logits)


@torch.no_grad()
def test_nothing_is_stored_where_nothing_is_pinned(model: PreTrainedModel) -> None:
    tokens = text(2, 60)
    for pinned in (None, mask(tokens), mask(tokens, 0, 1, 2)):  # sinks stay anyway
        cache = cache_of(model(tokens, pinned=pinned))
        assert cache.pinned.nbytes == 0
    with_pins = cache_of(model(tokens, pinned=mask(tokens, 20, 30)))
    assert with_pins.nbytes == cache.nbytes + 2 * 2 * 8


@torch.no_grad()
def test_generate_pins_tokens_of_the_prompt(model: PreTrainedModel) -> None:
    tokens = text(2, 150)  # longer than a chunk of the prompt
    pinned = mask(tokens, 4, 5)
    pinned[1, 149] = True
    _, cache = read(model, tokens[:, :-1], pinned[:, :-1], [149])
    expected, last, own = tokens, tokens[:, -1:], pinned[:, -1:]
    for _ in range(GREEDY["max_new_tokens"]):
        last = model(last, pinned=own, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        expected, own = torch.cat([expected, last], 1), None
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 30}):
        out = model.generate(tokens, pinned=pinned, **GREEDY, **options)
        assert torch.equal(out, expected), options
    assert not torch.equal(model.generate(tokens, **GREEDY), expected)
    embeddings = model.get_input_embeddings()(tokens)
    out = model.generate(inputs_embeds=embeddings, pinned=pinned, **GREEDY)
    assert torch.equal(out, expected[:, 150:])


@torch.no_grad()
def test_beam_search_and_assisted_decoding_keep_pins(model: PreTrainedModel) -> None:
    tokens = text(1, 60)
    pinned = mask(tokens, 4, 5, 59)  # the last is read with the first proposed tokens
    beams = {**GREEDY, "num_beams": 3}
    out = model.generate(tokens, pinned=pinned, return_dict_in_generate=True, **beams)
    assert are_retained(getattr(out, CACHE), 4, 5, sample=2)
    free = model.generate(tokens, pinned=pinned, use_cache=False, **beams)
    assert torch.equal(out.sequences, free)
    longer = {**GREEDY, "max_new_tokens": 40}
    expected = model.generate(tokens, pinned=pinned, **longer)
    assistant = tiny("llama")
    for options in ({"prompt_lookup_num_tokens": 4}, {"assistant_model": assistant}):
        given = {**longer, **options, "pinned": pinned, "return_dict_in_generate": True}
        out = model.generate(tokens, **given)
        assert torch.equal(out.sequences, expected)
        assert are_retained(getattr(out, CACHE), 4, 5, 59)


@torch.no_grad()
def test_transcript_is_continued_with_the_same_pins(model: PreTrainedModel) -> None:
    tokens = text(1, 40)
    given = {**GREEDY, "return_dict_in_generate": True}
    first = model.generate(tokens, pinned=mask(tokens, 2, 3, 4), **given)
    cache = getattr(first, CACHE)
    transcript = torch.cat([first.sequences, text(1, 20)], 1)
    pinned = mask(transcript, 2, 3, 4)
    late = mask(transcript, 2, 3, 4, 10)
    seen = cache.seen_tokens
    with pytest.raises(InputError, match=r"pinned marks some of the \d+ tokens that"):
        model.generate(transcript, pinned=late, **{CACHE: cache}, **GREEDY)
    assert cache.seen_tokens == seen, "nothing is read"
    out = model.generate(transcript, pinned=pinned, **{CACHE: copy.deepcopy(cache)}, **given)
    assert torch.equal(out.sequences, model.generate(transcript, pinned=pinned, **GREEDY))
    assert are_retained(getattr(out, CACHE), 3, 4)
    unpinned = model.generate(transcript, **{CACHE: cache}, **given)  # they stay pinned
    assert torch.equal(unpinned.sequences, out.sequences)


@torch.no_grad()
def test_too_many_pins_are_refused_before_anything_is_read(model: PreTrainedModel) -> None:
    tokens = text(2, 150)
    pinned = mask(tokens, 0, 1, 2, 3, 50)
    cache = cache_of(model(tokens, pinned=pinned))
    seen, more = cache.seen_tokens, mask(tokens)
    more[1, [7, 8, 149]] = True
    for call in (model, model.generate):
        with pytest.raises(InputError, match=r"pinned must have ≤ 4 tokens a sample .* got 5"):
            call(tokens + 1 - tokens.gt(40).long(), pinned=more, **{CACHE: cache})
        assert (cache.seen_tokens, cache.pinned.shape) == (seen, (2, 2))
    assert cache_of(model(tokens, pinned=more & ~pinned, **{CACHE: None})).pinned.shape == (2, 3)


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (torch.ones(2, 9), r"pinned must be a tensor of torch.bool, got torch.float32"),
        (torch.ones(2, 9).long(), r"pinned must be a tensor of torch.bool, got torch.int64"),
        ([[True] * 9] * 2, r"pinned must be a tensor of torch.bool, got a list"),
        (torch.ones(9).bool(), r"pinned must be \(2, 9\), .* got \(9,\)"),
        (torch.ones(1, 9).bool(), r"pinned must be \(2, 9\), .* got \(1, 9\)"),
        (torch.ones(2, 10).bool(), r"pinned must be \(2, 9\), .* got \(2, 10\)"),
    ],
)
def test_invalid_masks_are_refused(
    model: PreTrainedModel, call: str, given: Any, shown: str
) -> None:
    with pytest.raises(InputError, match=shown):
        getattr(model, call)(text(2, 9), pinned=given)


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("window", {"window": W}),
        ("window", {"window": W, "layers": []}),
        ("parallel", {"segment_length": 4}),
        ("parallel", {"segment_length": 4, "segmented": False}),
        ("replace", {"segment_length": 4}),
    ],
    ids=str,
)
def test_models_without_retained_pairs_refuse_pins(
    call: str, method: Any, options: dict[str, Any]
) -> None:
    model, tokens = infini.retrofit(tiny("llama"), method, **options), text(1, 9)
    with pytest.raises(InputError, match="pinned needs a model with retained pairs"):
        getattr(model, call)(tokens, pinned=mask(tokens, 4))


def test_pins_under_gradient_checkpointing_and_peft(model: PreTrainedModel) -> None:
    tokens = text(1, 60)
    given = {"input_ids": tokens, "labels": tokens, "pinned": mask(tokens, 4, 5)}
    bias = model.get_decoder().layers[0].self_attn.infini_window.retained.bias

    def gradient(module: torch.nn.Module, **inputs: Tensor) -> Tensor:
        return torch.autograd.grad(module(**inputs, use_cache=False).loss, bias)[0]

    expected = gradient(model, **given)
    assert not torch.allclose(expected, gradient(model, input_ids=tokens, labels=tokens))
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(model.train(), **given), expected)
    model.gradient_checkpointing_disable()
    model.eval()
    out = model.generate(tokens, pinned=given["pinned"], **GREEDY)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        torch.testing.assert_close(tuned(**given).loss, tuned.get_base_model()(**given).loss)
    assert torch.equal(tuned.generate(input_ids=tokens, pinned=given["pinned"], **GREEDY), out)
    with pytest.raises(InputError, match="pinned must be"):
        tuned(tokens, pinned=given["pinned"][:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("policy", ["adakv", AdaKV("h2o")])
def test_pins_stay_where_heads_share_their_pairs(policy: str | AdaKV) -> None:
    model = infini.retrofit(tiny("llama"), "window", window=W, sinks=S, retained=K, policy=policy)
    tokens = text(1, 90)
    pinned = mask(tokens, 5)
    whole = model(tokens, pinned=pinned, use_cache=False).logits
    with torch.enable_grad():  # reads all blocks at once
        by_blocks = model(tokens, pinned=pinned, use_cache=False).logits
    torch.testing.assert_close(whole, by_blocks, **CLOSE)
    logits, _ = read(model, tokens, pinned, [40, 3, 47])
    torch.testing.assert_close(logits, whole, **CLOSE)
