"""What a memory costs: counted, and the same after any number of tokens."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from infini.evaluation.cost import StateBytes, cache_after, state_bytes
from infini.memory.eviction import num_recent
from infini.model.modules import added_parameters, infini_parameters
from infini.model.retrofit import remove, retrofit

L, HIDDEN, LAYERS = 16, 16, 2


def kept(model: PreTrainedModel, tokens: int) -> int:
    return state_bytes(cache_after(model, torch.randint(300, (1, tokens)))).total


def test_the_base_keeps_every_key_and_value(model: PreTrainedModel) -> None:
    assert added_parameters(model) == 0
    assert kept(model, 32) == 2 * LAYERS * 32 * HIDDEN * 4
    assert kept(model, 48) == 2 * LAYERS * 48 * HIDDEN * 4


@pytest.mark.parametrize(
    "options",
    [
        {"method": "parallel", "layers": [0], "segment_length": L},
        {"method": "window", "window": 12},
        {"method": "window", "window": 12, "update": "none", "retained": 3},
    ],
    ids=["parallel", "window", "retained"],
)
def test_a_memory_keeps_its_size(model: PreTrainedModel, options: dict[str, Any]) -> None:
    logits = model(torch.arange(10)[None]).logits
    retrofit(model, **options)
    assert added_parameters(model) == sum(t.numel() for t in infini_parameters(model).values())
    assert kept(model, 2 * L) == kept(model, 20 * L) > 0
    remove(model)
    assert torch.equal(model(torch.arange(10)[None]).logits, logits)


def test_a_replacements_parameters_are_those_beyond_the_layer(model: PreTrainedModel) -> None:
    before = sum(p.numel() for p in model.gpt_neox.layers[0].parameters())
    retrofit(model, "replace", [0], L, init="teacher")
    assert (
        added_parameters(model)
        == sum(t.numel() for t in infini_parameters(model).values()) - before
    )
    assert added_parameters(model) == 2  # a gate a head
    assert kept(model, 2 * L) == kept(model, 20 * L) > 0


def test_kept_pairs_are_memory_and_the_window_is_exact(model: PreTrainedModel) -> None:
    retrofit(model, "window", window=12, sinks=2, update="none", retained=3)
    found = state_bytes(cache_after(model, torch.randint(300, (1, 60))))
    heads, held = 2, num_recent(12)
    pairs = 4 * 2 * 3 * HIDDEN  # keys and values
    figures = heads * (2 * 4 * (3 + held) + 8 * 3)  # scores and attention paid, positions
    assert found.memory == LAYERS * (pairs + figures)
    assert found == StateBytes(LAYERS * 4 * 2 * (2 + held) * HIDDEN, memory=found.memory)
