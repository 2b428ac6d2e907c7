"""Attention to sinks, kept pairs and window, against a loop over tokens in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import MemoryMode
from infini.memory import eviction
from infini.memory.eviction import RetainedState, recent
from infini.memory.retained import Pairs, Reader, RetainedPairs, retained_attention
from infini.memory.window import Span, WindowState
from memory.toy_retained import Keeper, loop
from memory.toy_window import B, D, G, H, V, softmax, tokens, turn

QKV = tuple[Tensor, Tensor, Tensor]
SCALE = D**-0.5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # what favours a pair is computed in float32
CASES = [
    {"window": 5, "sinks": 2, "count": 4},
    {"window": 1, "sinks": 0, "count": 3},
    {"window": 20, "sinks": 3, "count": 2, "context": 50},
    {"window": 6, "sinks": 0, "count": 90, "limit": 40},
    {"window": 12, "sinks": 4, "count": 2, "limit": 9},
]


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(eviction, "BLOCK", request.param)
    return request.param


def favouring(seed: int = 0, dtype: torch.dtype = torch.float64) -> RetainedPairs:
    """As if trained: pairs by about a logit, so that it decides which stay."""
    torch.manual_seed(seed)
    kept = RetainedPairs(H, G, V, 0)
    torch.nn.init.normal_(kept.bias, std=2)
    torch.nn.init.normal_(kept.weight, std=1.2 * V**-0.5)
    return kept.to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return softmax(q * SCALE, k, v, mask)


def step(
    qkv: QKV, state: WindowState, span: Span, case: Keeper, kept: RetainedPairs, **reader: Any
) -> tuple[Tensor, WindowState]:
    """One call."""
    q, k, v = qkv
    after = span.after(state, k, v, state.matrix)
    joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
    how = Reader(
        **{
            "attention": attention,
            "rotate": turn,
            "scale": SCALE,
            "context": case.context,
            "limit": case.limit,
            **reader,
        }
    )
    pairs = Pairs(*joined, after.sink_keys, after.sink_values)
    assert state.retained is not None
    out, pairs_after = retained_attention(q, pairs, state.retained, span, how, kept)
    return out, after._replace(retained=pairs_after)


def streamed(
    qkv: QKV, chunks: list[int], case: Keeper, kept: RetainedPairs, **reader: Any
) -> tuple[Tensor, RetainedState]:
    """In chunks, the state passed on."""
    batch, count, out, state = len(qkv[0]), 0, [], None
    for q, k, v in zip(*(x.split(chunks, 2) for x in qkv), strict=True):
        T = q.shape[2]
        counts = torch.full((batch,), count)
        span = Span(counts, torch.full((batch,), T), T, case.window, case.sinks)
        state = state or WindowState.empty(k, v, span, memory=False, retained=case.count)
        read, state = step((q, k, v), state, span, case, kept, **reader)
        out.append(read)
        count += T
    assert state is not None
    assert state.retained is not None
    return torch.cat(out, 1), state.retained


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reads_gradients_and_what_stays_are_those_of_a_loop(case: dict[str, int]) -> None:
    length, kept = 101, favouring()
    learnt = [p.detach().clone() for p in (kept.bias, kept.weight)]
    leaves = [x.requires_grad_() for x in (*tokens(length), *learnt)]
    expected, keepers = loop(leaves[:3], *leaves[3:], case)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True)
    some = any(own.retained for row in keepers for own in row)
    assert [bool(gradient.any()) for gradient in wanted[3:]] == [some, some]
    for chunks in ([length], [3, 14, 1, 40, length - 58], [1] * length):
        out, state = streamed(leaves[:3], chunks, Keeper(**case), kept)
        torch.testing.assert_close(out, expected, **CLOSE)
        ours = [*leaves[:3], kept.bias, kept.weight]
        gradients = torch.autograd.grad((out * weights).sum(), ours)
        for gradient, known in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, known, **CLOSE)
        for b in range(B):
            for g in range(G):
                own, positions = keepers[b][g].retained, state.positions[b, g]
                assert positions[positions >= 0].tolist() == own
                there = len(own)
                torch.testing.assert_close(state.keys[b, g, :there], leaves[1][b, g, own])
                torch.testing.assert_close(state.values[b, g, :there], leaves[2][b, g, own])
                assert not state.keys[b, g, there:].any()


@torch.no_grad()
def test_queries_and_keys_that_have_positions_already_are_taken_as_they_are() -> None:
    (q, k, v), case = tokens(70), Keeper(5, 0, 4)  # sinks would be seen from the edge
    turned = turn(q, torch.arange(70)[None]), turn(k, torch.arange(70)[None]), v
    out, _ = streamed(turned, [70], case, favouring(), rotate=None)
    torch.testing.assert_close(out, streamed((q, k, v), [33, 37], case, favouring())[0], **CLOSE)


@pytest.mark.parametrize("use", ["off", "swapped"])
@torch.no_grad()
def test_kept_pairs_of_nobody_and_of_the_other_half(use: MemoryMode) -> None:
    """Against a token at a time, the pairs put in place by hand before each."""
    qkv, case, kept = tokens(80), Keeper(5, 2, 4), favouring()
    state, expected = None, []
    for t, (q, k, v) in enumerate(zip(*(x.split(1, 2) for x in qkv), strict=True)):
        span = Span(torch.full((B,), t), torch.ones(B, dtype=torch.int64), 1, 5, 2)
        state = state or WindowState.empty(k, v, span, memory=False, retained=case.count)
        own = state.retained
        assert own is not None
        put = RetainedState(*(x.flip(0) for x in own))
        if use == "off":
            put = own._replace(positions=torch.full_like(own.positions, -1))
        expected.append(step((q, k, v), state._replace(retained=put), span, case, kept)[0])
        state = step((q, k, v), state, span, case, kept)[1]
    of_own, after = streamed(qkv, [80], case, kept)
    kept.use = use
    out, same = streamed(qkv, [50, 30], case, kept)
    torch.testing.assert_close(out, torch.cat(expected, 1), **CLOSE)
    assert not torch.allclose(out, of_own)
    assert torch.equal(same.positions, after.positions), "they stay the document's own"


@torch.no_grad()
def test_samples_of_other_lengths_are_read_as_alone() -> None:
    case, kept, lengths = Keeper(5, 2, 4), favouring(), [[31, 4, 31, 0], [9, 36, 9, 7]]
    qkv = [torch.cat([x, x.flip(0) + 1]) for x in tokens(40)]
    whole = [streamed([x[i : i + 1] for x in qkv], [40], case, kept)[0][0] for i in range(4)]
    counts, state = torch.zeros(4, dtype=torch.int64), None
    for new in lengths:
        rows = torch.tensor(new)
        T = max(new)
        parts = []
        for x in qkv:
            some = [x[i, :, c : c + n] for i, (c, n) in enumerate(zip(counts, new, strict=True))]
            parts.append(torch.stack([F.pad(y, (0, 0, 0, T - y.shape[1]), value=9) for y in some]))
        span = Span(counts, rows, T, case.window, case.sinks)
        state = state or WindowState.empty(*parts[1:], span, memory=False, retained=case.count)
        out, state = step(tuple(parts), state, span, case, kept)
        for i, (count, n) in enumerate(zip(counts.tolist(), new, strict=True)):
            torch.testing.assert_close(out[i, :n], whole[i][count : count + n], **CLOSE)
            assert not out[i, n:].any()
        counts = counts + rows
    for i, n in enumerate(counts.tolist()):
        _, alone = streamed([x[i : i + 1, :, :n] for x in qkv], [n], case, kept)
        for one, other in zip(state.retained, alone, strict=True):
            torch.testing.assert_close(one[i], other[0], check_dtype=False)


@torch.no_grad()
def test_positions_asked_for_stay_within_the_context() -> None:
    asked: list[Tensor] = []

    def watch(x: Tensor, positions: Tensor) -> Tensor:
        asked.append(positions)
        return turn(x, positions)

    case = Keeper(5, 2, 4, context=32)
    for chunks in ([200], [90, 1, 109]):
        streamed(tokens(200), chunks, case, favouring(), rotate=watch)
    assert max(int(positions.abs().max()) for positions in asked) < 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_nan_where_no_pair_is(dtype: torch.dtype) -> None:
    qkv, kept = [x.to(dtype).requires_grad_() for x in tokens(60)], favouring(0, dtype)
    how = {"attention": lambda q, *rest: softmax(q / 10, *rest), "scale": 0.1}
    out, _ = streamed(qkv, [60], Keeper(5, 2, 90), kept, **how)
    out.sum().backward()
    for x in (out, kept.bias.grad, kept.weight.grad, *(x.grad for x in qkv)):
        assert x.isfinite().all()
    exact = [x.detach().double() for x in qkv]
    expected, _ = streamed(exact, [60], Keeper(5, 2, 90), kept.double(), **how)
    assert F.cosine_similarity(out.double(), expected, dim=-1).min() > 0.99


@torch.no_grad()
def test_the_state_is_of_one_size(block: int) -> None:
    sizes = set()
    for length in (1, 30, 150):
        _, k, v = (x.float() for x in tokens(length))
        span = Span(torch.zeros(B, dtype=torch.int64), torch.full((B,), length), length, 5, 2)
        empty = WindowState.empty(k, v, span, memory=False, retained=4)
        q = torch.zeros(B, H, length, D)
        _, state = step((q, k, v), empty, span, Keeper(5, 2, 4), favouring(0, torch.float32))
        sizes.add((state.nbytes, state.window_bytes))
    R = 5 + block - 2
    exact = 4 * B * G * (2 + R) * (D + V)
    pairs = B * G * (4 * 4 * (D + V) + 8 * 4 + 2 * 4 * (4 + R))
    assert sizes == {(exact + pairs, exact)}
    assert recent(5) == R
