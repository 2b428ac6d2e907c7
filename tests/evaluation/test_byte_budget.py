"""Retained pairs that a byte budget pays for, against the cache that a text leaves."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from architectures import text, tiny
from infini.errors import InputError
from infini.evaluation.byte_budget import (
    StateSize,
    equal_window,
    full_attention_bytes,
    policy_state_bytes,
    window_bytes,
)
from infini.evaluation.cost import cache_after, state_bytes
from infini.memory.eviction import policy_by_name, policy_names
from infini.model.modules import has_memory
from infini.model.retrofit import retained_pairs, sliding_window
from toy import some_pieces

WINDOW, SINKS = 8, 2


@pytest.mark.parametrize("policy", policy_names())
def test_no_larger_number_of_pairs_is_within_the_budget(
    policy: str, model: PreTrainedModel
) -> None:
    tokens = some_pieces([60], 60).tokens
    for budget in (15_000, 20_123):
        retained = StateSize.by_retained(model, policy, WINDOW, SINKS).most_within(budget)
        assert retained > 3
        assert policy_state_bytes(model, policy, WINDOW, SINKS, retained) <= budget
        assert policy_state_bytes(model, policy, WINDOW, SINKS, retained + 1) > budget
    if policy_by_name(policy).needs_fit:
        return  # to be fitted before it reads
    expected = policy_state_bytes(model, policy, WINDOW, SINKS, retained)
    with retained_pairs(model, policy, WINDOW, SINKS, retained):
        for length in (WINDOW + SINKS + 1, 31, 32, 60):
            assert state_bytes(cache_after(model, tokens[:, :length])).total == expected


def test_exact_budget_pays_for_exactly_these_pairs(model: PreTrainedModel) -> None:
    exact = policy_state_bytes(model, "h2o", WINDOW, SINKS, 5)
    assert StateSize.by_retained(model, "h2o", WINDOW, SINKS).most_within(exact) == 5
    assert StateSize.by_retained(model, "h2o", WINDOW, SINKS).most_within(exact - 1) == 4


def test_budget_below_one_pair_pays_for_none(model: PreTrainedModel) -> None:
    one = policy_state_bytes(model, "tova", WINDOW, SINKS, 1)
    assert StateSize.by_retained(model, "tova", WINDOW, SINKS).most_within(one - 1) == 0
    assert StateSize.by_retained(model, "tova", WINDOW, SINKS).most_within(1) == 0


def test_state_of_a_policy_costs_pairs(model: PreTrainedModel) -> None:
    budget = 20_000
    attention_free = StateSize.by_retained(model, "keydiff", WINDOW, SINKS).most_within(budget)
    assert StateSize.by_retained(model, "h2o", WINDOW, SINKS).most_within(budget) < attention_free


def test_base_is_unchanged(model: PreTrainedModel) -> None:
    before = copy.deepcopy(model.state_dict())
    trainable = [p.requires_grad for p in model.parameters()]
    StateSize.by_retained(model, "tova", WINDOW, SINKS).most_within(20_000)
    with pytest.raises(InputError, match="policy must be one of"):
        StateSize.by_retained(model, "tovva", WINDOW, SINKS).most_within(20_000)
    assert not has_memory(model)
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral_5"])
def test_full_attention_bytes_are_those_of_the_bases_own_cache(name: str) -> None:
    base = tiny(name)
    for length in (1, 4, 50):
        measured = state_bytes(cache_after(base, text(1, length))).total
        assert full_attention_bytes(base, length) == measured


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral_5"])
def test_window_bytes_are_those_of_the_windows_cache(name: str) -> None:
    base = tiny(name)
    for size in (1, 3, 20):
        with sliding_window(base, size, SINKS):
            measured = state_bytes(cache_after(base, text(1, 50))).total
        assert window_bytes(base, size, SINKS) == measured
        assert equal_window(base, measured, SINKS) == size
        assert equal_window(base, measured + 1, SINKS) == size + 1
        assert StateSize.by_window(base, SINKS).most_within(measured) == size
        assert StateSize.by_window(base, SINKS).most_within(measured - 1) == size - 1
    assert window_bytes(base, 1, 255) > window_bytes(base, 1, 254), "as long as the base's context"
