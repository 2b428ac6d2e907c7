"""Pinned tokens: attention and selection against a loop over tokens in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from infini.memory.eviction import (
    H2O,
    Cascading,
    HeldPairs,
    LayerSize,
    RetainedState,
    RetentionPolicy,
    append_pinned,
    block_layout,
    policy_by_name,
    policy_names,
)
from infini.memory.eviction.head_budgets import unpack
from memory.toy_pinned import PinningCache, streamed_with_pins
from memory.toy_retained import loop, with_random_bias
from memory.toy_window import B, D, G, H, V, tokens, turn

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # the bias of a pair is computed in float32
LENGTH = 101
CHUNKS = ([LENGTH], [3, 14, 1, 40, LENGTH - 58], [1] * LENGTH)
CASES: list[dict[str, Any]] = [
    {"window": 5, "sinks": 2, "num_retained": 4, "pinned": (1, 2, 3, 40)},
    {"window": 1, "sinks": 0, "num_retained": 3, "pinned": (0, 1, 60)},  # as many as there is room
    {"window": 20, "sinks": 3, "num_retained": 3, "context": 50, "pinned": (3, 4)},
    {"window": 6, "sinks": 0, "num_retained": 90, "sliding_window": 40, "pinned": (0, 1, 2, 50)},
    {"window": 6, "sinks": 0, "num_retained": 90, "context": 24, "pinned": (*range(9), 30)},
    {"window": 12, "sinks": 4, "num_retained": 2, "sliding_window": 9, "pinned": (5,)},
    {"window": 14, "sinks": 2, "num_retained": 2, "pinned": (2,)},  # leaves at a block's end,
    {"window": 13, "sinks": 2, "num_retained": 1, "context": 30, "pinned": (2,)},  # not scored
]


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pinned_tokens_equal_loop_in_any_chunks(case: dict[str, Any]) -> None:
    retained = with_random_bias(case["num_retained"])
    learned = [p.detach().clone() for p in (retained.bias, retained.weight)]
    leaves = [x.requires_grad_() for x in (*tokens(LENGTH), *learned)]
    expected, caches = loop(leaves[:3], *leaves[3:], case, PinningCache)
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True)
    reference = PinningCache(**case)
    for row in caches:
        for own in row:
            pinned = [j for j in case["pinned"] if j >= case["sinks"]]
            assert set(own.retained) >= set(reference.staying(pinned)), "none is dropped"
    for chunks in CHUNKS:
        out, state = streamed_with_pins(leaves[:3], chunks, reference, retained)
        torch.testing.assert_close(out, expected, **CLOSE)
        ours = [*leaves[:3], retained.bias, retained.weight]
        gradients = torch.autograd.grad((out * weights).sum(), ours)
        for gradient, one in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, one if one is not None else 0 * gradient, **CLOSE)
        with torch.no_grad():
            given: dict[str, Any] = {"attention": not_called, "is_softmax": True}
            out, same = streamed_with_pins(leaves[:3], chunks, reference, retained, **given)
        torch.testing.assert_close(out, expected, **CLOSE)
        for b in range(B):
            for g in range(G):
                own = caches[b][g].retained
                missing = [-1] * (case["num_retained"] - len(own))
                for positions in (state.positions[b, g], same.positions[b, g]):
                    assert positions.tolist() == missing + own, "empty slots first"
                torch.testing.assert_close(state.keys[b, g, len(missing) :], leaves[1][b, g, own])


def not_called(*_: Tensor) -> Tensor:
    raise AssertionError("the attention with gradients is called")


class NearestToPinned(RetentionPolicy):
    """A policy whose scores depend on the angles to pinned keys, and that would drop these."""

    def score(self, pairs: HeldPairs) -> Tensor:
        similarity = pairs.relative_keys @ pairs.rotated_keys[:, :, :1].mT
        angles = pairs.rotated_keys @ pairs.rotated_keys[:, :, :1].mT
        dropped = pairs.positions < 6
        return (0 * similarity + angles)[..., 0].masked_fill(dropped, -torch.inf)


class InfiniteScores(RetentionPolicy):
    """A policy whose scores are infinite: every second pair stays first, the others never."""

    def score(self, pairs: HeldPairs) -> Tensor:
        scores = torch.full(pairs.positions.shape, -torch.inf)
        return scores.masked_fill(pairs.positions % 2 == 0, torch.inf)


@torch.no_grad()
@pytest.mark.parametrize("policy", [NearestToPinned, InfiniteScores, H2O, Cascading])
def test_policy_with_pinned_tokens_is_the_same_in_any_chunks(
    policy: type[RetentionPolicy],
) -> None:
    case = PinningCache(7, 2, 5, context=40, pinned=(2, 3, 4, 45))
    retained = with_random_bias(5)
    retained.policy = policy()
    qkv, given = tokens(LENGTH), {"attention": not_called, "is_softmax": True}
    whole, expected = streamed_with_pins(qkv, [LENGTH], case, retained)
    for chunks in CHUNKS:
        out, state = streamed_with_pins(qkv, chunks, case, retained, **given)
        torch.testing.assert_close(out, whole, **CLOSE)
        assert torch.equal(state.positions, expected.positions)
        assert is_retained(case.pinned, state)


@torch.no_grad()
@pytest.mark.parametrize("name", policy_names())
def test_no_policy_drops_pinned_pairs(name: str) -> None:
    case, retained = PinningCache(7, 2, 5, context=40, pinned=(2, 3, 4, 45)), with_random_bias(5)
    retained.policy = policy_by_name(name)
    shapes = retained.policy.weight_shapes(LayerSize(H, G, D, V))
    torch.manual_seed(0)
    for key, shape in shapes.items():
        retained.policy_weights[key] = torch.nn.Parameter(torch.randn(shape), False)
    _, state = streamed_with_pins(tokens(LENGTH), [60, 41], case, retained)
    assert is_retained(case.pinned, state)


def is_retained(pinned: tuple[int, ...], state: RetainedState) -> bool:
    """Whether all heads have retained these tokens."""
    if state.counts.shape[1]:  # the heads share their slots
        state = unpack(state, int(state.counts.max()))
    return all(bool((state.positions == token).any(-1).all()) for token in pinned)


@torch.no_grad()
def test_pinned_tokens_stay_within_the_context(block: int) -> None:
    seen: list[int] = []

    def record(x: Tensor, positions: Tensor) -> Tensor:
        seen.append(int(positions.abs().max()))
        return turn(x, positions)

    case, retained = PinningCache(5, 2, 4, context=32, pinned=(2, 3, 4)), with_random_bias(4)
    for chunks in ([500], [90, 1, 409]):
        _, state = streamed_with_pins(tokens(500), chunks, case, retained, rotate=record)
        assert state.positions[:, :, :3].tolist() == [[[2, 3, 4]] * G] * B
    assert max(seen) < 32


def test_append_pinned_moves_empty_slots_first() -> None:
    pinned = torch.zeros(3, 0, dtype=torch.int64)
    positions = torch.arange(4).expand(3, -1)
    none = torch.zeros(3, 4, dtype=torch.bool)
    assert append_pinned(pinned, none, positions).shape == (3, 0)
    new = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    pinned = append_pinned(pinned, new, positions)
    assert pinned.tolist() == [[0, 2], [-1, -1], [-1, 3]]
    assert append_pinned(pinned, new, positions + 4).tolist() == [
        [0, 2, 4, 6],
        [-1, -1, -1, -1],
        [-1, -1, 3, 7],
    ]
