"""Assisted decoding with a memory equals plain greedy decoding, and leaves the same cache."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.modules import infini_parameters

NEW = 40
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
KINDS = ["window", "retained", "parallel", "replace_teacher", "parallel_full"]


@pytest.fixture(params=KINDS)
def model(
    request: pytest.FixtureRequest, retrofitted: Callable[[str, str], PreTrainedModel]
) -> PreTrainedModel:
    """Every kind of cache."""
    if request.param in ("window", "retained"):
        options = {"retained": 4} if request.param == "retained" else {"update": "gated_delta"}
        model = infini.retrofit(tiny("llama"), "window", window=7, sinks=3, **options)
    else:
        model = retrofitted("llama", request.param)
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def repetitive(tokens: int) -> Tensor:
    """A text in which prompt lookup finds something."""
    return text(1, 11).repeat(1, tokens // 11 + 1)[:, :tokens]


def assistant(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Return the arguments of `generate` for a kind of assisted decoding."""
    if name == "prompt_lookup":
        return {"prompt_lookup_num_tokens": 4}
    if name == "base":  # often right, of another architecture of cache
        return {"assistant_model": tiny("llama")}
    if name == "itself":  # always right
        return {"assistant_model": copy.deepcopy(model)}
    other = infini.retrofit(tiny("qwen2"), "window", window=5, sinks=1)  # mostly wrong
    return {"assistant_model": other}


ASSISTANTS = ["prompt_lookup", "base", "itself", "other"]


@pytest.mark.parametrize("name", ASSISTANTS)
@pytest.mark.parametrize("length", [3, 70])
def test_assisted_decoding_equals_greedy_decoding(
    model: PreTrainedModel, name: str, length: int
) -> None:
    prompt = repetitive(length)
    plain = model.generate(prompt, **GREEDY)
    assisted = model.generate(prompt, **assistant(model, name), **GREEDY)
    assert torch.equal(assisted.sequences, plain.sequences)
    torch.testing.assert_close(
        torch.stack(assisted.logits, 1), torch.stack(plain.logits, 1), rtol=1e-3, atol=1e-4
    )
    more = text(1, 20)
    caches = cache_of(plain), cache_of(assisted)
    assert caches[0].seen_tokens == caches[1].seen_tokens == length + NEW - 1
    assert caches[0].nbytes == caches[1].nbytes
    expected, logits = (model(more, **{CACHE: cache}).logits for cache in caches)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["prompt_lookup", "base"])
def test_assisted_decoding_after_a_given_cache(model: PreTrainedModel, name: str) -> None:
    with torch.no_grad():
        caches = [cache_of(model(repetitive(50))) for _ in range(2)]
    tokens = [text(1, 9)] * 2  # new tokens alone, then all of them and more
    for _ in range(3):
        plain = model.generate(tokens[0], **{CACHE: caches[0]}, **GREEDY)
        assisted = model.generate(
            tokens[1], **{CACHE: caches[1]}, **assistant(model, name), **GREEDY
        )
        assert torch.equal(assisted.sequences, plain.sequences)
        tokens = [torch.cat([out.sequences, text(1, 5)], 1) for out in (plain, assisted)]
    assert caches[0].seen_tokens == caches[1].seen_tokens


def test_assisted_decoding_ends_at_an_end_token(model: PreTrainedModel) -> None:
    prompt = repetitive(33)
    end = int(model.generate(prompt, **GREEDY).sequences[0, 33 + 7])
    plain = model.generate(prompt, eos_token_id=end, **GREEDY)
    assisted = model.generate(prompt, eos_token_id=end, prompt_lookup_num_tokens=5, **GREEDY)
    assert torch.equal(assisted.sequences, plain.sequences)
    assert cache_of(assisted).seen_tokens == plain.sequences.shape[1] - 1


def test_assisted_decoding_reads_few_tokens_twice(model: PreTrainedModel) -> None:
    """Rejected proposals, and a few accepted tokens; never the text again."""
    read = 0

    def count(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal read
        read += args[0].numel()

    handle = model.get_input_embeddings().register_forward_pre_hook(count)
    model.generate(repetitive(90), prompt_lookup_num_tokens=3, **GREEDY)
    handle.remove()
    assert read <= 90 + NEW * (1 + 3 + 17)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"assistant_early_exit": 1}, "assistant_early_exit is not supported"),
        ({"prompt_lookup_num_tokens": 3, "use_cache": False}, "needs use_cache=True"),
        ({"prompt_lookup_num_tokens": 3, "batch": 2}, "needs input_ids of one sample"),
    ],
)
def test_assisted_decoding_that_no_memory_can_do_is_refused_unread(
    model: PreTrainedModel, arguments: dict[str, Any], shown: str
) -> None:
    arguments = dict(arguments)
    batch = arguments.pop("batch", 1)
    with torch.no_grad():
        cache = cache_of(model(text(batch, 20)))
    given = {} if "use_cache" in arguments else {CACHE: cache}
    with pytest.raises(InputError, match=shown):
        model.generate(text(batch, 9), **given, **arguments, **GREEDY)
    assert cache.seen_tokens == 20


@torch.no_grad()
def test_crop_goes_back_to_before_the_recorded_pass(model: PreTrainedModel) -> None:
    cache = cache_of(model(text(2, 45)))
    expected = model(text(2, 9), **{CACHE: copy.deepcopy(cache)}).logits
    cache.activate_past_recording()
    for tokens in (3, 30):
        model(text(2, tokens), **{CACHE: cache})
        cache.crop(-tokens)
        assert cache.seen_tokens == cache.get_seq_length() == 45
    model(text(2, 9), **{CACHE: cache})
    with pytest.raises(InputError, match=r"crop goes back .* by -9, got -3"):
        cache.crop(-3)
    cache = cache_of(model(text(2, 45)))
    cache.activate_past_recording()
    model(text(2, 30), **{CACHE: cache})
    cache.crop(-30)
    assert torch.equal(model(text(2, 9), **{CACHE: cache}).logits, expected)
    cache.crop(0)  # the pass stays
    with pytest.raises(InputError, match="cannot remove its last tokens"):
        cache.crop(-9)
