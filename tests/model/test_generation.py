"""`generate` with a memory writes what forward passes over the same text predict."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from architectures import text
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
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
    decoder, widest = model.get_decoder(), 0
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
    assert decoder.run is None


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
