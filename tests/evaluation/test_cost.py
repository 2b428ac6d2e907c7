"""State bytes: counted, and constant for a memory."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from infini.evaluation.cost import StateBytes, cache_after, state_bytes
from infini.memory.eviction import num_recent
from infini.model.modules import added_parameters, infini_parameters
from infini.model.retrofit import remove, retrofit

L, HIDDEN, LAYERS = 16, 16, 2


def total_bytes(model: PreTrainedModel, tokens: int) -> int:
    return state_bytes(cache_after(model, torch.randint(300, (1, tokens)))).total


def test_state_bytes_of_the_base_grow_with_the_text(model: PreTrainedModel) -> None:
    assert added_parameters(model) == 0
    assert total_bytes(model, 32) == 2 * LAYERS * 32 * HIDDEN * 4
    assert total_bytes(model, 48) == 2 * LAYERS * 48 * HIDDEN * 4


@pytest.mark.parametrize(
    "options",
    [
        {"method": "parallel", "layers": [0], "segment_length": L},
        {"method": "window", "window": 12},
        {"method": "window", "window": 12, "update": "none", "retained": 3},
    ],
    ids=["parallel", "window", "retained"],
)
def test_state_bytes_of_a_memory_are_constant(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    logits = model(torch.arange(10)[None]).logits
    retrofit(model, **options)
    assert added_parameters(model) == sum(t.numel() for t in infini_parameters(model).values())
    assert total_bytes(model, 2 * L) == total_bytes(model, 20 * L) > 0
    remove(model)
    assert torch.equal(model(torch.arange(10)[None]).logits, logits)


def test_added_parameters_of_a_replacement_exclude_the_layers_own(model: PreTrainedModel) -> None:
    before = sum(p.numel() for p in model.gpt_neox.layers[0].parameters())
    retrofit(model, "replace", [0], L, init="teacher")
    assert (
        added_parameters(model)
        == sum(t.numel() for t in infini_parameters(model).values()) - before
    )
    assert added_parameters(model) == 2  # a gate a head
    assert total_bytes(model, 2 * L) == total_bytes(model, 20 * L) > 0


def test_state_bytes_count_retained_pairs_as_memory(model: PreTrainedModel) -> None:
    retrofit(model, "window", window=12, sinks=2, update="none", retained=3)
    found = state_bytes(cache_after(model, torch.randint(300, (1, 60))))
    heads, held = 2, num_recent(12)
    pairs = 4 * 2 * 3 * HIDDEN  # keys and values
    scores = heads * (2 * 4 * (3 + held) + 8 * 3)  # scores and attention received, positions
    assert found.memory == LAYERS * (pairs + scores)
    assert found == StateBytes(LAYERS * 4 * 2 * (2 + held) * HIDDEN, memory=found.memory)
