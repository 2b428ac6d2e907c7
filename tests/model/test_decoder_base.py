"""Which caches a retrofitted decoder accepts, and calls that fail before they advance one."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import infini
from architectures import L, text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, CACHE_NAMES, cache_of
from infini.model.modules import infini_parameters

Retrofitted = Callable[[str, str], PreTrainedModel]
W = {"method": "window", "window": 8, "sinks": 2}
PARALLEL = {"segment_length": L}
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (W | {"window": 12}, W),
    (W | {"retained": 3}, W | {"retained": 4}),
    (W, W | {"layers": [0]}),
    (PARALLEL, PARALLEL | {"segmented": False}),
    (PARALLEL | {"segmented": False}, PARALLEL),
    (PARALLEL, PARALLEL | {"segment_length": L - 1}),
    (PARALLEL, PARALLEL | {"layers": [1]}),
    (PARALLEL, PARALLEL),  # of other weights
]


@pytest.fixture(params=["window", "parallel", "replace_teacher", "parallel_full"])
def model(request: pytest.FixtureRequest, retrofitted: Retrofitted) -> PreTrainedModel:
    """Every kind of cache."""
    if request.param != "window":
        return retrofitted("llama", request.param)
    return infini.retrofit(tiny("llama"), "window", window=7, sinks=3)


@pytest.mark.parametrize("same_base", [False, True])
@pytest.mark.parametrize(("one", "other"), OTHERS)
@torch.no_grad()
def test_cache_of_other_memory_layers_is_rejected_unchanged(
    one: dict[str, Any], other: dict[str, Any], same_base: bool
) -> None:
    first = infini.retrofit(tiny("llama"), **one)
    for length in (5, 30):
        state = cache_of(first(text(2, length)))
        expected = first(text(2, 9), **{CACHE: copy.deepcopy(state)}).logits
        second = infini.retrofit(infini.remove(first) if same_base else tiny("llama"), **other)
        if one == other:
            next(iter(infini_parameters(second).values())).data += 1
        for call in (second, second.generate):
            with pytest.raises(InputError, match="written by other memory layers"):
                call(text(2, 9), **{CACHE: state})
        if same_base:
            first = infini.retrofit(infini.remove(second), **one)
        else:
            assert torch.equal(first(text(2, 9), **{CACHE: state}).logits, expected)


def test_cache_survives_training_copy_and_pickle(model: PreTrainedModel) -> None:
    with torch.no_grad():
        state = cache_of(model(text(2, 20)))
    twin = copy.deepcopy(model)
    copies = [copy.deepcopy(state), pickle.loads(pickle.dumps(state))]
    expected = model(text(2, 9), **{CACHE: copy.deepcopy(state)}).logits
    for one in copies:
        assert torch.equal(twin(text(2, 9), **{CACHE: one}).logits, expected)
    for parameter in infini_parameters(model).values():
        parameter.data += 1
    model(text(2, 9), **{CACHE: copy.deepcopy(state)})
    state.batch_repeat_interleave(3)
    model.generate(text(2, 9), **{CACHE: state}, num_beams=3, max_new_tokens=3)
    with pytest.raises(InputError, match="written by other memory layers"):
        model(text(2, 9), **{CACHE: copies[0]})  # adopted by the twin
    state.reset()
    model(text(1, 9), **{CACHE: state})


@torch.no_grad()
def test_decoder_fingerprint_changes_with_every_parameter(model: PreTrainedModel) -> None:
    decoder = model.get_decoder()
    first = decoder.fingerprint()
    for name, parameter in decoder.memory_parameters().items():
        own = parameter.clone()
        parameter.data.view(-1)[-1] += 0.5  # which does not count as a new version
        changed = decoder.fingerprint()
        assert changed != first, name
        parameter.copy_(own)
        assert decoder.fingerprint() == first


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "long mask": (
        r"attention_mask must have ≤ {columns} columns \(past and new tokens\), got",
        {"input_ids": text(2, 3)},
    ),
    "list": (
        r"attention_mask must be a tensor \(batch, past \+ 3\), got a list",
        {"input_ids": text(2, 3), "attention_mask": [[1, 1, 1]] * 2},
    ),
    "two inputs": (
        "give either input_ids or inputs_embeds, got both",
        {"input_ids": text(2, 3), "inputs_embeds": torch.zeros(2, 3, 16)},
    ),
    "one axis": (
        r"input_ids must be a tensor \(batch, tokens\), got \(3,\)",
        {"input_ids": text(1, 3)[0]},
    ),
    "no tensor": (
        r"input_ids must be a tensor \(batch, tokens\), got a list",
        {"input_ids": [[1, 2]]},
    ),
    "embeddings": (
        r"inputs_embeds must be a tensor \(batch, tokens, width\), got \(2, 3\)",
        {"inputs_embeds": torch.zeros(2, 3)},
    ),
    "fractions": ("input_ids must be integers, got torch.float32", {"input_ids": torch.ones(2, 3)}),
    "bytes": (
        "input_ids must be torch.int64 or torch.int32, got torch.uint8",
        {"input_ids": text(2, 3).to(torch.uint8)},
    ),
    "truth values": (
        "input_ids must be torch.int64 or torch.int32, got torch.bool",
        {"input_ids": text(2, 3) > 9},
    ),
    "no values": ("must have values, got the meta device", {"input_ids": text(2, 3).to("meta")}),
    "no sample": ("must have at least one token", {"input_ids": text(0, 3)}),
    "other batch": ("holds 2 samples, the batch has 3", {"input_ids": text(3, 3)}),
    "vocabulary": (
        "input_ids must be between 0 and 49, got 50",
        {"input_ids": torch.tensor([[1] * 20 + [50], [1] * 21])},
    ),
    "negative": (
        "input_ids must be between 0 and 49, got -1",
        {"input_ids": torch.tensor([[1, -1]] * 2)},
    ),
}


@pytest.mark.parametrize("read", [5, 20])
@pytest.mark.parametrize("name", WRONG)
@torch.no_grad()
def test_rejected_call_leaves_the_cache_unchanged(
    name: str, read: int, model: PreTrainedModel
) -> None:
    message, arguments = WRONG[name]
    state, more = cache_of(model(text(2, read))), text(2, 30)
    expected = model(more, **{CACHE: copy.deepcopy(state)}).logits
    if name == "long mask":
        arguments = arguments | {"attention_mask": torch.ones(2, read + 4)}
    with pytest.raises(InputError, match=message.format(columns=read + 3)):
        model(**arguments, **{CACHE: state})
    assert torch.equal(model(more, **{CACHE: state}).logits, expected)


@torch.no_grad()
def test_failed_forward_leaves_the_cache_unchanged(model: PreTrainedModel) -> None:
    state, more = cache_of(model(text(2, 5))), text(2, 3)
    expected = model(more, **{CACHE: copy.deepcopy(state)}).logits
    with pytest.raises(RuntimeError):
        model(inputs_embeds=torch.zeros(2, 3, 7), **{CACHE: state})
    assert torch.equal(model(more, **{CACHE: state}).logits, expected)


@torch.no_grad()
def test_two_caches_are_rejected(model: PreTrainedModel) -> None:
    state = cache_of(model(text(2, 5)))
    decoder, more = model.get_decoder(), text(2, 3)
    with pytest.raises(
        InputError, match="cache and past_key_values are one argument, got two caches"
    ):
        decoder(more, **{name: copy.deepcopy(state) for name in CACHE_NAMES})
    decoder(more, **dict.fromkeys(CACHE_NAMES, state))


def test_attention_mask_longer_than_the_text_is_rejected(model: PreTrainedModel) -> None:
    for use_cache in (True, False):
        with pytest.raises(InputError, match="attention_mask must have ≤ 3 columns"):
            model(text(2, 3), attention_mask=torch.ones(2, 4), use_cache=use_cache)


@pytest.mark.parametrize("length", [8, 40])
@torch.no_grad()
def test_attention_mask_that_contradicts_the_cache_is_rejected(
    model: PreTrainedModel, length: int
) -> None:
    tokens = text(2, length + 8)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # for full attention, as a base needs them

    def state() -> Any:
        given = {"attention_mask": mask[:, :length], "position_ids": positions[:, :length]}
        return cache_of(model(tokens[:, :length], **given))

    more = tokens[:, length:]
    whole = model(tokens, attention_mask=mask, position_ids=positions).logits[:, length:]
    given: dict[str, Any] = {"attention_mask": mask, "position_ids": positions[:, length:]}
    logits = model(more, **given, **{CACHE: state()}).logits
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(more, **{CACHE: state()}).logits, logits)
    hidden = mask.clone()
    hidden[1, 2] = 0  # read, and to be hidden now
    for wrong in (torch.ones_like(mask), hidden, mask.roll(1, 0)):
        for call in (model, model.generate):
            cache = state()
            expected = model(more, **{CACHE: copy.deepcopy(cache)}).logits
            # generate drops a mask of ones: it hides nothing, and says that tokens are new
            if call is model or not wrong.all():
                with pytest.raises(InputError, match=f"differs from the cache's on the {length} "):
                    call(more, attention_mask=wrong, **{CACHE: cache})
                assert torch.equal(model(more, **{CACHE: cache}).logits, expected)


@torch.no_grad()
def test_attention_mask_of_the_last_tokens_hides_none(model: PreTrainedModel) -> None:
    cache, more = cache_of(model(text(2, 40))), text(2, 5)
    expected = model(more, **{CACHE: copy.deepcopy(cache)}).logits
    mask = torch.ones(2, 12, dtype=torch.int64)
    logits = model(more, attention_mask=mask, **{CACHE: copy.deepcopy(cache)}).logits
    assert torch.equal(logits, expected)
    mask[0, 3] = 0
    with pytest.raises(InputError, match="differs from the cache's on the 7 tokens"):
        model(more, attention_mask=mask, **{CACHE: cache})


@torch.no_grad()
def test_memory_of_another_dtype_is_rejected(model: PreTrainedModel, tmp_path: Path) -> None:
    state = cache_of(model(text(2, 20)))
    infini.save_memory(state, tmp_path / "memory")
    shown = "was written in float32, this model computes in bfloat16: load the model with dtype"
    half = copy.deepcopy(model).to(torch.bfloat16)
    with pytest.raises(InputError, match=shown):
        infini.load_memory(tmp_path / "memory", half)
    loaded = infini.load_memory(tmp_path / "memory")
    for call in (half, half.generate):
        for cache in (loaded, state):
            with pytest.raises(InputError, match=shown):
                call(text(2, 3), **{CACHE: cache})
    model.to(torch.bfloat16)  # its own cache
    with pytest.raises(InputError, match=shown):
        model(text(2, 3), **{CACHE: state})


@torch.no_grad()
def test_cache_after_remove_is_rejected(model: PreTrainedModel) -> None:
    states = [cache_of(model(text(2, length))) for length in (5, 30)]
    infini.remove(model)
    for state in states:
        for call in (model, model.generate):
            with pytest.raises(InputError, match="belongs to a model with a memory, this one has"):
                call(text(2, 3), **{CACHE: state})


@pytest.mark.parametrize("name", dict.fromkeys([CACHE, "past_key_values"]))
def test_generate_rejects_a_cache_without_memory(name: str, model: PreTrainedModel) -> None:
    given: dict[str, Any] = {name: DynamicCache()}
    with pytest.raises(InputError, match=r"a DynamicCache cannot hold the memory.*prefix tuning"):
        model.generate(text(1, 3), **given, max_new_tokens=2)


def test_inputs_embeds_equal_input_ids(
    model: PreTrainedModel,
) -> None:
    embeds: Tensor = model.get_input_embeddings()(text(2, 9))
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(text(2, 9)).logits)
