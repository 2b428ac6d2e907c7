"""Attention to sinks, retained pairs and window, against a loop over tokens in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import MemoryMode
from infini.memory.block_reader import MAX_BIAS
from infini.memory.eviction import (
    DecayedAttention,
    HeldPairs,
    RetainedState,
    RetentionPolicy,
    block_layout,
    num_recent,
)
from infini.memory.window import ChunkInfo, Rotate
from memory.toy_retained import ReferenceCache, empty, loop, step, streamed, with_random_bias
from memory.toy_window import B, D, G, H, V, softmax, tokens, turn

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # the bias of a pair is computed in float32
CASES = [
    {"window": 5, "sinks": 2, "num_retained": 4},
    {"window": 1, "sinks": 0, "num_retained": 3},
    {"window": 20, "sinks": 3, "num_retained": 2, "context": 50},
    {"window": 6, "sinks": 0, "num_retained": 90, "sliding_window": 40},
    {"window": 12, "sinks": 4, "num_retained": 2, "sliding_window": 9},
]


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_retained_attention_equals_loop_with_gradients(case: dict[str, int]) -> None:
    length, retained = 101, with_random_bias(case["num_retained"])
    learned = [p.detach().clone() for p in (retained.bias, retained.weight)]
    leaves = [x.requires_grad_() for x in (*tokens(length), *learned)]
    expected, caches = loop(leaves[:3], *leaves[3:], case)
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True)
    some = any(own.retained for row in caches for own in row)
    assert [bool(gradient.any()) for gradient in expected_gradients[3:]] == [some, some]
    for chunks in ([length], [3, 14, 1, 40, length - 58], [1] * length):
        out, state = streamed(leaves[:3], chunks, ReferenceCache(**case), retained)
        torch.testing.assert_close(out, expected, **CLOSE)
        ours = [*leaves[:3], retained.bias, retained.weight]
        gradients = torch.autograd.grad((out * weights).sum(), ours)
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, reference, **CLOSE)
        for b in range(B):
            for g in range(G):
                own, positions = caches[b][g].retained, state.positions[b, g]
                assert positions[positions >= 0].tolist() == own
                empty = len(positions) - len(own)
                torch.testing.assert_close(state.keys[b, g, empty:], leaves[1][b, g, own])
                torch.testing.assert_close(state.values[b, g, empty:], leaves[2][b, g, own])
                assert not state.keys[b, g, :empty].any()


class LastQueries(RetentionPolicy):
    """A policy with a state of its own, for which a part of the block's attention counts."""

    attention = "sum"
    last_queries = 3
    query_decay = 0.9
    state = ("score",)

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        pairs.state["score"] = pairs.state["score"] / 2 + pairs.block_attention
        return pairs.state["score"] - pairs.rotated_keys.norm(dim=-1) / 9


class SmallestKeyNorm(RetentionPolicy):
    """A policy without attention."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return -pairs.keys.norm(dim=-1)


def not_called(*_: Tensor) -> Tensor:
    raise AssertionError("the attention with gradients is called")


@pytest.mark.parametrize("rotate", [turn, None])
@pytest.mark.parametrize("policy", [DecayedAttention, LastQueries, SmallestKeyNorm])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_block_reader_equals_attention_with_gradients(
    case: dict[str, int], policy: type[RetentionPolicy], rotate: Rotate | None
) -> None:
    length, retained = 101, with_random_bias(case["num_retained"])
    retained.policy = policy()
    qkv, reference = tokens(length), ReferenceCache(**case)
    expected, expected_state = streamed(qkv, [length], reference, retained, rotate=rotate)
    if rotate and policy is DecayedAttention:
        by_loop, _ = loop(qkv, retained.bias.detach(), retained.weight.detach(), case)
        torch.testing.assert_close(expected, by_loop, **CLOSE)
    given = {"rotate": rotate, "attention": not_called, "is_softmax": True}
    with torch.no_grad():
        for chunks in ([length], [3, 14, 1, 40, length - 58], [1] * length):
            out, state = streamed(qkv, chunks, reference, retained, **given)
            torch.testing.assert_close(out, expected, **CLOSE)
            assert torch.equal(state.positions, expected_state.positions)
            for tensor, other in zip(state, expected_state, strict=True):
                torch.testing.assert_close(tensor, other, **CLOSE)


@torch.no_grad()
def test_block_reader_is_not_used_where_it_differs() -> None:
    qkv, case = tokens(60), ReferenceCache(5, 2, 4)
    given: dict[str, Any] = {"attention": not_called, "is_softmax": True}
    half = tuple(x.bfloat16() for x in qkv)
    for inputs, change, spec in (
        (qkv, {"mode": "off"}, given),
        (qkv, {"mode": "swapped"}, given),
        (qkv, {"bias": torch.nn.Parameter(torch.full((H,), 61.0))}, given),
        (qkv, {"weight": torch.nn.Parameter(torch.full((G, V), 61.0))}, given),
        (half, {}, given),
        (qkv, {}, given | {"is_softmax": False}),
    ):
        retained = with_random_bias(4)
        for name, value in change.items():
            setattr(retained, name, value)
        with pytest.raises(AssertionError, match="the attention with gradients is called"):
            streamed(inputs, [60], case, retained, **spec)
    autocast = torch.autocast("cpu", torch.bfloat16)
    for context in (autocast, torch.enable_grad()):
        with context, pytest.raises(AssertionError, match="the attention with gradients is called"):
            streamed(qkv, [60], case, with_random_bias(4), **given)


@torch.no_grad()
def test_block_reader_takes_the_largest_bias() -> None:
    qkv, case, retained = tokens(60), ReferenceCache(5, 2, 4), with_random_bias(4).float()
    retained.weight.zero_()
    for bias in (MAX_BIAS, -MAX_BIAS):
        retained.bias.fill_(bias)
        q, k, v = (x.float() for x in qkv)
        expected, _ = streamed((q, k, v), [60], case, retained)
        out, _ = streamed((q, k, v), [60], case, retained, is_softmax=True)
        torch.testing.assert_close(out, expected, **CLOSE)


@torch.no_grad()
def test_rotate_none_takes_queries_and_keys_as_they_are() -> None:
    (q, k, v), case = tokens(70), ReferenceCache(5, 0, 4)  # sinks would be seen from the edge
    rotated = turn(q, torch.arange(70)[None]), turn(k, torch.arange(70)[None]), v
    out, _ = streamed(rotated, [70], case, with_random_bias(4), rotate=None)
    torch.testing.assert_close(
        out, streamed((q, k, v), [33, 37], case, with_random_bias(4))[0], **CLOSE
    )


@pytest.mark.parametrize("mode", ["off", "swapped"])
@torch.no_grad()
def test_memory_mode_off_and_swapped(mode: MemoryMode) -> None:
    """Against a token at a time, the pairs put in place by hand before each."""
    qkv, case, retained = tokens(80), ReferenceCache(5, 2, 4), with_random_bias(4)
    state, expected = None, []
    for t, (q, k, v) in enumerate(zip(*(x.split(1, 2) for x in qkv), strict=True)):
        chunk = ChunkInfo(torch.full((B,), t), torch.ones(B, dtype=torch.int64), 1, 5, 2)
        state = state or empty(k, v, chunk, case, retained)
        own = state.retained
        assert own is not None
        put = RetainedState(*(x.flip(0) for x in own))
        if mode == "off":
            put = own._replace(positions=torch.full_like(own.positions, -1))
        expected.append(step((q, k, v), state._replace(retained=put), chunk, case, retained)[0])
        state = step((q, k, v), state, chunk, case, retained)[1]
    own_pairs, after = streamed(qkv, [80], case, retained)
    retained.mode = mode
    out, same = streamed(qkv, [50, 30], case, retained)
    torch.testing.assert_close(out, torch.cat(expected, 1), **CLOSE)
    assert not torch.allclose(out, own_pairs)
    assert torch.equal(same.positions, after.positions), "they stay the document's own"


@torch.no_grad()
def test_samples_of_unequal_lengths_equal_each_alone() -> None:
    case, retained = ReferenceCache(5, 2, 4), with_random_bias(4)
    lengths = [[31, 4, 31, 0], [9, 36, 9, 7]]
    qkv = [torch.cat([x, x.flip(0) + 1]) for x in tokens(40)]
    whole = [streamed([x[i : i + 1] for x in qkv], [40], case, retained)[0][0] for i in range(4)]
    counts, state = torch.zeros(4, dtype=torch.int64), None
    for new in lengths:
        rows = torch.tensor(new)
        T = max(new)
        parts = []
        for x in qkv:
            some = [x[i, :, c : c + n] for i, (c, n) in enumerate(zip(counts, new, strict=True))]
            parts.append(torch.stack([F.pad(y, (0, 0, 0, T - y.shape[1]), value=9) for y in some]))
        chunk = ChunkInfo(counts, rows, T, case.window, case.sinks)
        state = state or empty(*parts[1:], chunk, case, retained)
        out, state = step(tuple(parts), state, chunk, case, retained)
        for i, (count, n) in enumerate(zip(counts.tolist(), new, strict=True)):
            torch.testing.assert_close(out[i, :n], whole[i][count : count + n], **CLOSE)
            assert not out[i, n:].any()
        counts = counts + rows
    for i, n in enumerate(counts.tolist()):
        _, alone = streamed([x[i : i + 1, :, :n] for x in qkv], [n], case, retained)
        for one, other in zip(state.retained, alone, strict=True):
            torch.testing.assert_close(one[i], other[0], check_dtype=False)


@torch.no_grad()
def test_positions_stay_within_the_context() -> None:
    positions_seen: list[Tensor] = []

    def record(x: Tensor, positions: Tensor) -> Tensor:
        positions_seen.append(positions)
        return turn(x, positions)

    case, retained = ReferenceCache(5, 2, 4, context=32), with_random_bias(4)
    for chunks in ([200], [90, 1, 109]):
        streamed(tokens(200), chunks, case, retained, rotate=record)
    assert max(int(positions.abs().max()) for positions in positions_seen) < 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_nan_in_empty_slots(dtype: torch.dtype) -> None:
    qkv = [x.to(dtype).requires_grad_() for x in tokens(60)]
    retained, case = with_random_bias(90, 0, dtype), ReferenceCache(5, 2, 90)
    spec = {"attention": lambda q, *rest: softmax(q / 10, *rest), "scale": 0.1}
    out, _ = streamed(qkv, [60], case, retained, **spec)
    out.sum().backward()
    for x in (out, retained.bias.grad, retained.weight.grad, *(x.grad for x in qkv)):
        assert x.isfinite().all()
    exact = [x.detach().double() for x in qkv]
    expected, _ = streamed(exact, [60], case, retained.double(), **spec)
    assert F.cosine_similarity(out.double(), expected, dim=-1).min() > 0.99


@torch.no_grad()
def test_state_size_is_constant(block: int) -> None:
    sizes, case = set(), ReferenceCache(5, 2, 4)
    retained = with_random_bias(4, 0, torch.float32)
    for length in (1, 30, 150):
        _, k, v = (x.float() for x in tokens(length))
        chunk = ChunkInfo(torch.zeros(B, dtype=torch.int64), torch.full((B,), length), length, 5, 2)
        before = empty(k, v, chunk, case, retained)
        q = torch.zeros(B, H, length, D)
        _, state = step((q, k, v), before, chunk, case, retained)
        sizes.add((state.nbytes, state.window_bytes))
    R = 5 + block - 2
    exact = 4 * B * G * (2 + R) * (D + V)
    pairs = B * G * (4 * 4 * (D + V) + 8 * 4 + 2 * 4 * (4 + R))
    assert sizes == {(exact + pairs, exact)}
    assert num_recent(5) == R
