"""Selection of retained pairs against a loop over tokens, and the interface of policies."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import infini
from infini.errors import InputError
from infini.memory.eviction import (
    H2O,
    BlockLayout,
    CallPairs,
    DecayedAttention,
    HeldPairs,
    LayerPolicy,
    RetainedState,
    RetentionPolicy,
    as_policy,
    block_layout,
    num_recent,
    policy_by_name,
    policy_names,
    register_policy,
    select,
)
from infini.memory.eviction.selection import BIAS_THRESHOLD
from memory.toy_retained import ReferenceCache, loop, pair_bias
from memory.toy_window import B, D, G, H, V, tokens, turn

SCALE = D**-0.5


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", request.param)
    return request.param


def select_in_chunks(
    qkv: tuple[Tensor, Tensor, Tensor],
    chunks: list[int],
    case: ReferenceCache,
    bias: Tensor | None = None,
    policy: RetentionPolicy | None = None,
) -> RetainedState:
    """State after `select` on a text that comes in chunks; keys are rotated by text position.

    bias: of every pair, (B, G, T); None: zero.
    """
    q, k, v = qkv
    policy = policy or DecayedAttention()
    W, S, K, R = case.window, case.sinks, case.num_retained, num_recent(case.window)
    limits = [x for x in (case.context, case.sliding_window) if x is not None]
    positions = torch.arange(q.shape[2])[None]
    near, far = turn(q, positions), turn(q, positions.clamp(max=W + S - 1))
    bias = k.new_zeros(k.shape[:3]) if bias is None else bias
    text = k, turn(k, positions), v, bias[..., None]
    state, past = RetainedState.empty(k, v, K, R, policy), 0
    for T in chunks:
        end = past + T
        retained = state.positions.clamp(min=0)[..., None]
        own = [
            torch.cat(
                [
                    x.gather(2, retained.expand(-1, -1, -1, x.shape[3])),
                    F.pad(x, (0, 0, R, 0))[:, :, past : end + R],
                ],
                2,
            )
            for x in text
        ]
        layout = BlockLayout(past, T, W, S, min(limits, default=None), case.sliding_window)
        pairs = CallPairs(*own[:3], text[1][:, :, :S])
        queries = near[:, :, past:end] * SCALE, far[:, :, past:end] * SCALE
        selection = select(queries, pairs, own[3][..., 0], state, layout, LayerPolicy(policy))
        assert selection.indices.shape == (B, G, layout.num_blocks + 1, K)
        assert selection.valid.shape == selection.indices.shape
        state = RetainedState(state.keys, state.values, *selection[2:])
        past = end
    return state


def assert_equals_reference(
    state: RetainedState, caches: list[list[ReferenceCache]], length: int
) -> None:
    """Positions, scores and the block's attention are those of the loop's caches."""
    for b in range(B):
        for g in range(G):
            own = caches[b][g]
            missing = [-1] * (own.num_retained - len(own.retained))
            assert state.positions[b, g].tolist() == missing + own.retained, "empty slots first"
            block_start = length - length % block_layout.RETENTION_BLOCK
            window_start = max(own.sinks, block_start - own.window + 1)
            recent = range(length - num_recent(own.window), length)
            held = [*missing, *own.retained, *(j if j >= window_start else -1 for j in recent)]
            scores = state.policy_state[b, g, 0]
            for tensor, reference in (
                (scores, own.scores),
                (state.block_attention[b, g], own.block_attention),
            ):
                expected = torch.tensor([reference.get(j, 0) for j in held], dtype=torch.float32)
                torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)


CASES = [(5, 2, 4), (1, 0, 3), (20, 3, 2), (12, 4, 1), (6, 0, 90)]
LIMITS = [(None, None), (48, None), (None, 40), (64, 9)]


@pytest.mark.parametrize(("W", "S", "K"), CASES)
@pytest.mark.parametrize(("context", "sliding_window"), LIMITS)
def test_select_equals_loop_in_any_chunks(
    W: int, S: int, K: int, context: int | None, sliding_window: int | None
) -> None:
    length = 101
    qkv = tokens(length)
    weight = 1.2 * V**-0.5 * torch.randn(G, V, dtype=torch.float64)
    bias = torch.stack([pair_bias(qkv[2][:, g], weight[g]) for g in range(G)], 1)
    case = {"window": W, "sinks": S, "num_retained": K, "context": context}
    case |= {"sliding_window": sliding_window}
    _, caches = loop(qkv, torch.zeros(H), weight, case)
    limits = [x for x in (context, sliding_window, length) if x is not None]
    some_retained = min(limits) >= W + block_layout.RETENTION_BLOCK
    assert any(own.retained for row in caches for own in row) == some_retained
    none, small, whole = (
        select_in_chunks(qkv, [length], ReferenceCache(**case), some).positions
        for some in (None, bias.clamp(max=BIAS_THRESHOLD), bias)
    )
    assert none.equal(small), "biases below the threshold decide nothing"
    assert none.equal(whole) == (not some_retained or min(limits) <= K), "none is dropped by rank"
    for chunks in ([length], [3, 14, 1, 40, length - 58], [1] * length):
        state = select_in_chunks(qkv, chunks, ReferenceCache(**case), bias)
        assert_equals_reference(state, caches, length)


def test_select_retains_nothing_before_the_window_moves(block: int) -> None:
    qkv = tokens(2 * block)
    case = ReferenceCache(2 * block - 4, 4, 3)
    for bias in (None, torch.ones(B, G, 2 * block)):
        # Token 4 leaves, but no query that counts has seen it
        state = select_in_chunks(qkv, [2 * block], case, bias)
        assert state.positions.eq(-1).all()
        assert not state.policy_state.any()


def queries_and_keys(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros, for tests that write into them which query attends to which key."""
    shapes = (B, H, length, D), (B, G, length, D), (B, G, length, V)
    q, k, v = (torch.zeros(*shape) for shape in shapes)
    return q, k, v


def without_positions(qkv: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Undo the rotation of `select_in_chunks` in advance."""
    q, k, v = qkv
    back = -torch.arange(q.shape[2])[None]
    return turn(q, back), turn(k, back), v


def test_eviction_score_decays(block: int) -> None:
    """One pair is attended to in a block, another four blocks later; there is room for one."""
    first, second, end = block // 2, 4 * block + block // 2, 5 * block
    q, k, v = queries_and_keys(end)
    k[:, :, 0, 2], q[:, :, block : 4 * block, 2] = 1, 40  # all attend to the sink in between
    k[:, :, first, 0], q[:, :, first:block, 0] = 1, 40
    k[:, :, second, 1], q[:, :, second:, 1] = 1, 40
    q, k, v = without_positions((q, k, v))
    for length, retained in ((4 * block, first), (end - 1, first), (end, second)):
        text = q[:, :, :length], k[:, :, :length], v[:, :, :length]
        state = select_in_chunks(text, [length], ReferenceCache(2, 1, 1))
        assert state.positions.eq(retained).all()


@pytest.mark.parametrize(
    ("bias", "stays"), [(0.0, False), (0.6, False), (1.3, True), (-1.3, False)]
)
def test_pair_bias_does_not_decay(block: int, bias: float, stays: bool) -> None:
    """One pair is attended to in a block, another half as much four blocks later."""
    first, second, end = block // 2, 4 * block + block // 2, 5 * block
    q, k, v = queries_and_keys(end)
    k[:, :, 0, 2], q[:, :, block:, 2] = 1, 40  # all but the first block attend to the sink
    k[:, :, first, 0], q[:, :, first:block, 0] = 1, 40
    k[:, :, second, 1], q[:, :, second:, 1] = 1, 40  # and as much to this one
    pair_biases = torch.zeros(B, G, end)
    pair_biases[:, :, first] = bias
    for chunks in ([end], [1] * end):
        case = ReferenceCache(2, 1, 1)
        state = select_in_chunks(without_positions((q, k, v)), chunks, case, pair_biases)
        assert state.positions.eq(first if stays else second).all()


def test_pair_bias_decides_between_equal_scores(block: int) -> None:
    """Two pairs get the same attention in the block before they leave; there is room for one."""
    pair, end = [block + 1, block + 2], 3 * block
    q, k, v = queries_and_keys(end)
    k[:, :, 0, 2], q[:, :, :, 2] = 1, 40  # all attend to the sink otherwise
    k[:, :, pair, 0], q[:, :, pair[1] : 2 * block, 0] = 1, 80
    for biased in pair:
        bias = torch.zeros(B, G, end)
        bias[:, :, biased] = 1.3
        case = ReferenceCache(block, 1, 1)
        state = select_in_chunks(without_positions((q, k, v)), [end], case, bias)
        assert state.positions.eq(biased).all()


def test_select_computes_in_float32_under_autocast() -> None:
    qkv = tokens(60)
    expected = select_in_chunks(qkv, [60], ReferenceCache(5, 2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        state = select_in_chunks(qkv, [60], ReferenceCache(5, 2, 4))
    for one, other in zip(state, expected, strict=True):
        assert torch.equal(one, other)


class SmallestKeyNorm(RetentionPolicy):
    """A policy without attention and state."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return -pairs.keys.norm(dim=-1)


class ReferenceSum(ReferenceCache):
    """Reference of `H2O`."""

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        for j, weight in weights.items():
            self.block_attention[j] = self.block_attention.get(j, 0) + float(weight.mean())

    def update_scores(self) -> None:
        for j, attention in self.block_attention.items():
            self.scores[j] = self.scores.get(j, 0) + attention


class ScoreWhenEvicted(RetentionPolicy):
    """A score that is fixed when a pair leaves the window, by the pairs that leave with it."""

    state = ("score",)

    def score(self, pairs: HeldPairs) -> Tensor:
        K, C = pairs.num_retained, pairs.block_size
        leaving = pairs.values[:, :, K : K + C].norm(dim=-1)
        score = pairs.state["score"].clone()
        score[:, :, K : K + C] = leaving / leaving.sum(-1, keepdim=True)
        pairs.state["score"] = score
        return score


class LastQuery(RetentionPolicy):
    """TOVA's score: attention of the block's last query, mean over all heads of the layer."""

    attention = "sum"
    last_queries = 1

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        return pairs.block_attention.mean(1, keepdim=True).expand_as(pairs.block_attention)


POLICIES = [DecayedAttention, SmallestKeyNorm, H2O, ScoreWhenEvicted, LastQuery]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("W", "S", "K"), [(5, 2, 4), (12, 4, 1), (1, 0, 3), (14, 2, 3)])
def test_policy_state_is_the_same_in_any_chunks(
    policy: type[RetentionPolicy], W: int, S: int, K: int
) -> None:
    qkv = tuple(x.float() for x in tokens(101))
    case = ReferenceCache(W, S, K)
    whole = select_in_chunks(qkv, [101], case, policy=policy())
    assert whole.positions.ge(S).any()
    for chunks in ([3, 14, 1, 40, 43], [1] * 101):
        state = select_in_chunks(qkv, chunks, case, policy=policy())
        for one, other in zip(state, whole, strict=True):
            torch.testing.assert_close(one, other)


def test_attention_sum_equals_loop() -> None:
    qkv, case = tokens(101), {"window": 5, "sinks": 2, "num_retained": 4}
    _, caches = loop(
        qkv, torch.zeros(H), torch.zeros(G, V, dtype=torch.float64), case, ReferenceSum
    )
    state = select_in_chunks(qkv, [101], ReferenceCache(**case), policy=H2O())
    assert_equals_reference(state, caches, 101)


def test_policy_without_attention_computes_none(block: int) -> None:
    qkv, K = tokens(101), 4
    case = ReferenceCache(5, 2, K)
    not_a_number = torch.full_like(qkv[0], torch.nan), *qkv[1:]  # queries are not touched
    state = select_in_chunks(not_a_number, [101], case, policy=SmallestKeyNorm())
    num_evicted = 101 - 101 % block - 5 + 1
    norms = qkv[1][:, :, 2:num_evicted].norm(dim=-1)
    assert state.positions.equal(2 + norms.topk(K, largest=False).indices.sort(-1).values)
    assert state.policy_state.numel() == state.block_attention.numel() == 0


def test_query_decay_weighs_later_queries_more() -> None:
    """A2SF's sum within a block, Σ decay^(last - q) · attention, here of two queries."""
    policy, qkv, case = H2O(), tokens(34), ReferenceCache(30, 2, 1)
    received = {}
    for policy.query_decay in (1.0, 0.5, 0.0):
        state = select_in_chunks(qkv, [34], case, policy=policy)
        received[policy.query_decay] = state.block_attention
    assert received[0.0].any()
    torch.testing.assert_close(2 * received[0.5], received[1.0] + received[0.0])


def test_register_policy_by_name_and_as_decorator() -> None:
    class Sum(H2O):
        """Registered by a call."""

    register_policy("test_sum", Sum)
    register_policy("test_sum_decayed", lambda: DecayedAttention(0.5))

    @infini.register_policy("test_decorated")
    class Decorated(SmallestKeyNorm):
        """Registered by a decorator."""

    assert isinstance(policy_by_name("test_sum"), Sum)
    assert Sum().name == "test_sum"
    assert policy_by_name("test_sum_decayed").name == "test_sum_decayed"
    assert isinstance(as_policy("test_decorated"), Decorated)
    assert SmallestKeyNorm().name == "SmallestKeyNorm"
    assert {"decayed_attention", "test_sum", "test_decorated"} <= set(policy_names())
    with pytest.raises(InputError, match="'decayed_attention' is registered already"):
        register_policy("decayed_attention", H2O)


def test_unknown_policy_names_the_known() -> None:
    with pytest.raises(InputError, match=r"policy must be one of 'a2sf', .*got 'h20'"):
        policy_by_name("h20")
    policy: Any = SmallestKeyNorm
    with pytest.raises(InputError, match="registered name or a RetentionPolicy object"):
        as_policy(policy)


def test_policy_class_rejects_invalid_attributes() -> None:
    with pytest.raises(
        InputError, match=r"Mean.attention must be 'max', 'sum' or None, got 'mean'"
    ):
        type("Mean", (SmallestKeyNorm,), {"attention": "mean"})
    with pytest.raises(InputError, match=r"Text.state must be a tuple of names, got 'score'"):
        type("Text", (SmallestKeyNorm,), {"state": "score"})
    decorated: Any = SmallestKeyNorm
    with pytest.raises(InputError, match="name must be a string"):
        register_policy(decorated)


def test_score_of_wrong_shape_is_an_input_error() -> None:
    class Wrong(RetentionPolicy):
        def score(self, pairs: HeldPairs) -> Tensor:
            return pairs.keys.norm(dim=-1)[:, :, :-1]

    with pytest.raises(InputError, match=r"policy 'Wrong': score must return \(2, 2, \d+\), got"):
        select_in_chunks(tokens(60), [60], ReferenceCache(5, 2, 4), policy=Wrong())
