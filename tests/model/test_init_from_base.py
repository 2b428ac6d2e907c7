"""A replaced layer initialised from the base equals the base within a segment."""

from pathlib import Path

import pytest
import torch
from transformers import MistralForCausalLM

import infini
from architectures import CONFIGS, L, text, tiny
from infini.errors import InputError
from infini.model.base import load_base
from infini.model.modules import segmented_layers
from infini.model.segmented.init_from_base import GATE_INIT

DATA_BASE = Path(infini.__file__).parents[1] / "data/base"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("segmented", [True, False])
@torch.no_grad()
def test_replace_teacher_equals_the_base_within_a_segment(name: str, segmented: bool) -> None:
    model, tokens = tiny(name), text(2, 2 * L)
    within = model(tokens[:, :L]).logits
    infini.retrofit(model, "replace", [0, 2], L, init="teacher", segmented=segmented)
    torch.testing.assert_close(model(tokens[:, :L]).logits, within, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens).logits[:, :L], within, rtol=1e-5, atol=1e-5)
    for module in segmented_layers(model).values():
        assert module.infini_attention.beta.tolist() == [GATE_INIT] * 4


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_replace_teacher_equals_the_base_bit_for_bit_under_autocast(name: str) -> None:
    model, tokens = tiny(name), text(2, L)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens).logits
        infini.retrofit(model, "replace", [0, 2], L, init="teacher")
        assert torch.equal(model(tokens).logits, expected)


@torch.no_grad()
def test_replace_teacher_equals_the_embedded_base_within_a_segment() -> None:
    model = load_base(str(DATA_BASE))
    tokens = torch.randint(model.config.vocab_size, (2, 256))
    expected = model(tokens).logits
    every = list(range(model.config.num_hidden_layers))
    infini.retrofit(model, "replace", every, 256, init="teacher")
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_replace_rejects_segments_longer_than_the_bases_sliding_window() -> None:
    config = CONFIGS["mistral"].__class__(**CONFIGS["mistral"].to_dict() | {"sliding_window": 8})
    with pytest.raises(
        InputError, match=r"segment_length must be ≤ 8 \(the base's sliding window\), got 16"
    ):
        infini.retrofit(MistralForCausalLM(config), "replace", segment_length=L)
    infini.retrofit(MistralForCausalLM(config), "replace", segment_length=8)
