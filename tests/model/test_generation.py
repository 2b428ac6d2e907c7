"""`generate` with a memory writes what forward passes over the same text predict."""

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.model import generation
from infini.model.architectures import CACHE, cache_of
from infini.model.cache import MemoryCache
from infini.model.generation import PREFILL_SEGMENTS
from infini.model.segmented.run import run_segments

Retrofitted = Callable[[str, str], PreTrainedModel]
L = 8
NEW = 12  # new tokens: after each prompt below, two segments end among them
GREEDY = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def segment_length() -> int:
    return L


@torch.no_grad()
def test_generate_equals_forward_token_for_token(any_model: PreTrainedModel) -> None:
    tokens = text(2, 37)
    out = any_model.generate(tokens, max_new_tokens=NEW, **GREEDY)
    logits = any_model(out.sequences, use_cache=False).logits[:, 36:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits.argmax(-1), out.sequences[:, 37:])
    # Greedy tokens do not depend on max_new_tokens; a segment ends after the third.
    few = any_model.generate(tokens, max_new_tokens=4, use_cache=False, **GREEDY)
    assert torch.equal(few.sequences, out.sequences[:, :41])
    torch.testing.assert_close(torch.stack(few.logits, 1), logits[:, :4], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_generate_of_a_padded_batch_equals_each_text_alone(any_model: PreTrainedModel) -> None:
    lengths, width = [5, 37, 28], 37
    texts = [text(1, n) for n in lengths]
    batch = torch.cat([F.pad(t, (width - t.shape[1], 0)) for t in texts])
    mask = (batch != 0).long()
    together = any_model.generate(batch, attention_mask=mask, max_new_tokens=NEW, **GREEDY)
    for row, prompt in enumerate(texts):
        new, n = together.sequences[row, width:], prompt.shape[1]
        whole = torch.cat([prompt, new[None]], 1)
        logits = any_model(whole, use_cache=False).logits[0, n - 1 : -1]
        generated = torch.stack([step[row] for step in together.logits])
        torch.testing.assert_close(generated, logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits.argmax(-1), new)
        # Alone, over the end of a segment.
        alone = any_model.generate(prompt, max_new_tokens=6, **GREEDY)
        assert torch.equal(alone.sequences[0, n:], new[:6])


@torch.no_grad()
def test_beam_search_equals_recomputation(any_model: PreTrainedModel) -> None:
    beams = {
        "num_beams": 3, "max_new_tokens": 6, "do_sample": False,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    cached, plain = (
        any_model.generate(text(1, 37), use_cache=use, **beams) for use in (True, False)
    )
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(
        cached.sequences_scores, plain.sequences_scores, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_prefill_reads_a_long_prompt_in_chunks(
    retrofitted: Retrofitted,
) -> None:
    model = retrofitted("gpt_neox", "parallel")
    tokens = text(1, 40 * L + 5)
    widest = 0
    embed = model.get_input_embeddings()

    def watch(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal widest
        widest = max(widest, args[0].numel())

    embed.register_forward_pre_hook(watch)
    out = model.generate(tokens, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    assert widest == PREFILL_SEGMENTS * L == 16 * L
    _, states = run_segments(model, tokens[:, : 40 * L], L)
    for layer, state in cache_of(out).memory.items():
        torch.testing.assert_close(state.normalizer, states[layer].normalizer)


@torch.no_grad()
def test_generate_continues_a_cache_by_either_argument_name(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("llama", "replace_teacher"), text(2, 37)
    expected = model.generate(tokens, max_new_tokens=4, do_sample=False)
    for name in dict.fromkeys([CACHE, "past_key_values"]):
        state = cache_of(model(tokens[:, :30]))
        continued = model.generate(tokens, **{name: state}, max_new_tokens=4, do_sample=False)
        assert torch.equal(continued, expected)
        assert state.get_seq_length() == 40  # the last token's keys are not needed


def test_cache_implementation_is_rejected(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    with pytest.raises(InputError, match="cache_implementation='static'"):
        model.generate(text(1, 3), cache_implementation="static", max_new_tokens=2)


@torch.no_grad()
def test_dynamic_cache_implementation_is_the_memory(any_model: PreTrainedModel) -> None:
    tokens = text(1, 37)
    expected = any_model.generate(tokens, max_new_tokens=3, **GREEDY)
    for given in ({}, {CACHE: cache_of(any_model(tokens))}):
        if given:
            tokens = torch.cat([tokens, text(1, 4)], 1)
            expected = any_model.generate(tokens, max_new_tokens=3, **GREEDY)
        out = any_model.generate(
            tokens, cache_implementation="dynamic", max_new_tokens=3, **given, **GREEDY
        )
        assert torch.equal(out.sequences, expected.sequences)
        assert isinstance(cache_of(out), MemoryCache)


@torch.no_grad()
def test_long_prompt_has_a_progress_bar(
    retrofitted: Retrofitted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = retrofitted("llama", "parallel")
    enabled = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        model.generate(text(1, 40 * L), max_new_tokens=2)
        assert "reading" not in capsys.readouterr().err  # it takes no time
        monkeypatch.setattr(generation, "PROGRESS_DELAY", 0)
        model.generate(text(1, 40 * L), max_new_tokens=2)
        # The last part is read with the first logits
        assert f"reading the prompt:   0%|          | 0/{32 * L} " in capsys.readouterr().err
        logging.disable_progress_bar()
        model.generate(text(1, 40 * L), max_new_tokens=2)
        assert "reading" not in capsys.readouterr().err
    finally:
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("method", ["window", "parallel"])
@torch.no_grad()
def test_set_attn_implementation_keeps_the_memory(method: str, implementation: str) -> None:
    options = {"window": 7, "sinks": 3, "retained": 4} if method == "window" else {"alpha": 0.5}
    model, tokens = infini.retrofit(tiny("llama"), method, **options), text(1, 60)
    logits = model(tokens).logits
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    infini.remove(model)
    assert model.config._attn_implementation == implementation
    base = tiny("llama")
    base.set_attn_implementation(implementation)
    assert torch.equal(model(tokens).logits, base(tokens).logits)


@torch.no_grad()
def test_attention_set_around_the_model_is_rejected() -> None:
    model = infini.retrofit(tiny("llama"), "window", window=7, sinks=3)
    model.config._attn_implementation = "eager"
    with pytest.raises(InputError, match=r"model.set_attn_implementation"):
        model(text(1, 60))


@pytest.mark.parametrize("method", ["window", "parallel", "replace"])
@torch.no_grad()
def test_pickled_model_is_the_model(method: str) -> None:
    options = {"window": 16} if method == "window" else {}
    model, tokens = infini.retrofit(tiny("llama"), method, **options), text(1, 200)
    expected = model(tokens).logits
    again = pickle.loads(pickle.dumps(model))
    assert type(again).__name__ == "LlamaForCausalLM"
    assert torch.equal(again(tokens).logits, expected)
    assert torch.equal(infini.remove(again)(tokens).logits, tiny("llama")(tokens).logits)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_model_on_the_meta_device_is_rejected(device: Any) -> None:
    model = infini.retrofit(tiny("llama"), "parallel")
    for move in (lambda: model.to(device), lambda: model.to(device=device)):
        with pytest.raises(InputError, match="cannot be on the meta device"):
            move()
    model.to(torch.float64).to("cpu", torch.float32)(text(1, 3))


def test_prompt_learning_is_rejected(retrofitted: Retrofitted) -> None:
    """As peft does it: its method stands in the model's place."""

    class PrefixTuning:
        def __init__(self, model: PreTrainedModel, is_prompt_learning: bool):
            self.active_peft_config = SimpleNamespace(is_prompt_learning=is_prompt_learning)
            self.own = model.prepare_inputs_for_generation

        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            return self.own(*args, **kwargs)

    model = retrofitted("llama", "parallel")
    model.prepare_inputs_for_generation = PrefixTuning(model, True).prepare
    with pytest.raises(InputError, match="prefix and prompt tuning are not supported by generate"):
        model.generate(text(1, 3), max_new_tokens=2)
    del model.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = PrefixTuning(model, False).prepare  # LoRA
    model.generate(text(1, 3), max_new_tokens=2)
