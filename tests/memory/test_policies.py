"""Every built-in retention policy against a loop over tokens, and what it holds."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from infini.choices import Policy
from infini.errors import InputError
from infini.memory.block_reader import BlockReader
from infini.memory.eviction import (
    AdaKV,
    HeldPairs,
    LayerSize,
    QueryStatistics,
    RetainedState,
    block_layout,
    num_recent,
    policy_by_name,
    policy_names,
)
from infini.memory.eviction.query_statistics import FUTURE_POSITIONS
from infini.memory.retained import RetainedPairs
from memory.toy_policies import REFERENCES, product, rotation_matrix
from memory.toy_retained import QKV, ReferenceCache, attention, loop, streamed
from memory.toy_window import B, D, G, H, V, tokens, turn

BUILT_IN = policy_names()  # before a test registers others
LENGTH = 101
CHUNKS = [[LENGTH], [3, 14, 1, 40, LENGTH - 58], [1] * LENGTH]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CASES = [
    {"window": 5, "sinks": 2, "num_retained": 4},
    {"window": 20, "sinks": 3, "num_retained": 9, "context": 60},
    {"window": 3, "sinks": 0, "num_retained": 90},
]
# Floats that a policy stores per retained pair and per recent token, keys and values aside
STORED = {
    "a2sf": (2, 2),  # the sum before this block, and of this block
    "adakv": (1, 1),
    "cascading": (2, 2),
    "curdkv": (1, 0),
    "decayed_attention": (2, 2),
    "expected_attention": (0, 0),
    "h2o": (2, 2),
    "keydiff": (0, 0),
    "knorm": (0, 0),
    "lagkv": (1, 0),
    "learned": (2, 2),
    "learned_no_attention": (0, 0),
    "observed_attention": (2, 2),
    "q_filter": (0, 0),
    "random": (0, 0),
    "rkv": (1, 1),  # of this block alone
    "snapkv": (1, 1),
    "tova": (0, 0),
}
SHARING = [name for name in BUILT_IN if policy_by_name(name).min_share is not None]
WITHOUT_ATTENTION = [name for name in BUILT_IN if policy_by_name(name).attention is None]


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", request.param)
    return request.param


def test_choices_name_the_built_in_policies() -> None:
    assert sorted(get_args(Policy)) == BUILT_IN == sorted(REFERENCES) == sorted(STORED)


def random_weights(name: str) -> dict[str, Tensor]:
    """Tensors as if fitted."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = normal(H, D, D) / 3
    known = {
        "mean": normal(H, D) / 2,
        "covariance": spread @ spread.mT,
        "direction": normal(G, D),
    }
    shapes = policy_by_name(name).weight_shapes(LayerSize(H, G, D, V))
    return {key: known[key] if key in known else normal(*shape) for key, shape in shapes.items()}


def retained_pairs(name: str, num_retained: int) -> RetainedPairs:
    """Retained pairs without a learned bias, under a policy as if fitted."""
    retained = RetainedPairs(H, G, (D, V), num_retained, policy_by_name(name)).double()
    for key, tensor in random_weights(name).items():
        retained.policy_weights[key].data.copy_(tensor)
    return retained


def read(
    name: str, case: dict[str, Any], qkv: QKV, chunks: list[int], blockwise: bool, **spec: Any
) -> tuple[Tensor, RetainedState]:
    """Read a text in chunks, by the blockwise reader or by the path that has gradients."""
    retained = retained_pairs(name, case["num_retained"])
    given = {"is_softmax": blockwise} | ({"attention": not_called} if blockwise else {}) | spec
    return streamed(qkv, chunks, ReferenceCache(**case), retained, **given)


def positions_by_head(state: RetainedState) -> list[list[list[int]]]:
    """Positions of the retained tokens by sample and head."""
    found = []
    for slots, counts in zip(state.positions, state.counts.tolist(), strict=True):
        slots = slots.flatten()[None] if counts else slots
        assert (slots >= 0).equal((slots >= 0).sort(-1).values), "empty slots first"
        held = [own[own >= 0] for own in slots]
        found.append([own.tolist() for own in (held[0].split(counts) if counts else held)])
    return found


def not_called(*_: Tensor) -> Tensor:
    raise AssertionError("the attention with gradients is called")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", BUILT_IN)
@torch.no_grad()
def test_policy_equals_loop_in_any_chunks(name: str, case: dict[str, Any]) -> None:
    qkv = tokens(LENGTH)
    own = case | {"weights": random_weights(name)}
    zero = torch.zeros(H), torch.zeros(G, V, dtype=torch.float64)
    expected, caches = loop(qkv, *zero, own, REFERENCES[name])
    positions = [[cache.retained for cache in heads] for heads in caches]
    assert any(retained for heads in positions for retained in heads)
    states = []
    for blockwise, chunks in ((False, CHUNKS[0]), (False, CHUNKS[1]), *((True, x) for x in CHUNKS)):
        out, state = read(name, case, qkv, chunks, blockwise)
        assert positions_by_head(state) == positions
        torch.testing.assert_close(out, expected, **CLOSE)
        states.append(state)
    for state in states[1:]:
        for one, other in zip(state, states[0], strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", BUILT_IN)
@torch.no_grad()
def test_no_moment_holds_more_than_the_budget(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S sinks, W tokens of the window, K retained pairs and C of the block, in any call.

    Where the heads of a layer share K·G pairs, a head may have empty slots beyond K.
    """
    W, S, K = 5, 2, 4
    attended: list[int] = []
    of_block, score = BlockReader.of_block, type(policy_by_name(name)).score

    def count_of_block(
        self: BlockReader, block: int, indices: Tensor, valid: Tensor, queries: range
    ) -> Tensor:
        assert valid.sum((1, 2)).max() <= G * K
        weights = of_block(self, block, indices, valid, queries)
        attended.append(S + weights.shape[-1])
        return weights

    def count_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attended.append(k.shape[2])
        return attention(q, k, v, mask)

    def count_scored(self: Any, pairs: HeldPairs) -> Tensor:
        assert pairs.keys.shape[2] == pairs.values.shape[2] == pairs.positions.shape[2]
        assert pairs.valid.sum((1, 2)).max() <= G * (K + W - 1 + block)
        attended.append(S + pairs.positions.shape[2])
        return score(self, pairs)

    monkeypatch.setattr(BlockReader, "of_block", count_of_block)
    monkeypatch.setattr(type(policy_by_name(name)), "score", count_scored)
    case, qkv = {"window": W, "sinks": S, "num_retained": K}, tokens(LENGTH)
    for chunks in (CHUNKS[0], [60] + [1] * (LENGTH - 60)):
        _, state = read(name, case, qkv, chunks, True)
        assert state.keys.shape == (B, G, K, D)
        read(name, case, qkv, chunks, False, attention=count_attention)
    slots = {K} if name not in SHARING else set(range(G * K))
    assert {x - (S + W - 1 + block) for x in attended} <= slots
    assert K + num_recent(W) + S < S + W + K + block, "between two calls"


@pytest.mark.parametrize("name", BUILT_IN)
@torch.no_grad()
def test_bytes_of_the_state(name: str) -> None:
    W, K = 5, 4
    case = {"window": W, "sinks": 2, "num_retained": K}
    q, k, v = (x.float() for x in tokens(LENGTH))
    for length in (1, 40, LENGTH):
        text = q[:, :, :length], k[:, :, :length], v[:, :, :length]
        _, state = read(name, case, text, [length], True)
        per_retained, per_recent = STORED[name]
        stored = per_retained * K + per_recent * num_recent(W)
        counts = 8 * (name in SHARING)
        assert sum(x.nbytes for x in state) == B * G * (K * (4 * (D + V) + 8) + 4 * stored + counts)


@pytest.mark.parametrize("blockwise", [True, False])
@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
@torch.no_grad()
def test_policy_without_attention_does_not_touch_queries(name: str, blockwise: bool) -> None:
    case, (q, k, v) = CASES[0], tokens(LENGTH)
    _, expected = read(name, case, (q, k, v), [LENGTH], blockwise)
    _, state = read(name, case, (torch.full_like(q, torch.nan), k, v), [50, 51], blockwise)
    assert torch.equal(state.positions, expected.positions)
    for tensor in state:
        assert tensor.isfinite().all()


@torch.no_grad()
def test_random_policy_retains_a_uniform_sample() -> None:
    torch.manual_seed(0)
    k = torch.zeros(1, 20, 4000, 1)
    case = ReferenceCache(1, 0, 50)
    retained = RetainedPairs(20, 20, (1, 1), 50, policy_by_name("random"))
    _, state = streamed((k, k, k), [4000], case, retained, rotate=None, is_softmax=True)
    counts = torch.histc(state.positions.float(), 4, 0, 4000)
    assert counts.sum() == 1000
    assert counts.sub(250).abs().max() < 60, "four standard deviations"


def query_statistics(rotate: Any = turn) -> tuple[list[Tensor], QueryStatistics]:
    """Some queries of every head, (n, D), and their moments."""
    torch.manual_seed(0)
    queries = [torch.randn(D) + torch.randn(9, D) @ torch.randn(D, D) for _ in range(H)]
    moments = torch.stack([q.T @ q / len(q) for q in queries])
    mean = torch.stack([q.mean(0) for q in queries])
    return queries, QueryStatistics(mean, moments, G, rotate)


def test_expected_attention_is_fitted_by_mean_rotation() -> None:
    queries, statistics = query_statistics()
    matrices = [rotation_matrix(D, t) for t in range(FUTURE_POSITIONS)]
    rotation = torch.tensor(matrices, dtype=torch.float64).mean(0)
    fitted = policy_by_name("expected_attention").fit(statistics)
    for h, q in enumerate(queries):
        covariance = q.double().T.cov(correction=0)
        expected = rotation @ q.double().mean(0), rotation @ covariance @ rotation.T
        ours = fitted["mean"][h].double(), fitted["covariance"][h].double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    _, unrotated = query_statistics(None)
    fitted = policy_by_name("expected_attention").fit(unrotated)
    torch.testing.assert_close(fitted["mean"], unrotated.mean)


def test_q_filter_is_fitted_by_singular_vector() -> None:
    queries, statistics = query_statistics()
    fitted = policy_by_name("q_filter").fit(statistics)["direction"]
    for g in range(G):
        rows = [
            product(rotation_matrix(D, t), q)
            for head in queries[g * H // G : (g + 1) * H // G]
            for q in head.tolist()
            for t in range(FUTURE_POSITIONS)
        ]
        matrix = torch.tensor(rows, dtype=torch.float64)
        direction = torch.linalg.svd(matrix, full_matrices=False).Vh[0]
        direction *= (matrix @ direction).mean().sign()
        torch.testing.assert_close(fitted[g].double(), direction, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["h2o", "knorm", "q_filter"])
@torch.no_grad()
def test_adakv_takes_the_scores_of_any_policy(policy: str) -> None:
    """The layer's pairs of highest score, beside a fifth of K for every head."""
    case, qkv, K = ReferenceCache(5, 2, 10), tokens(LENGTH), 10
    own = AdaKV(policy)
    retained = RetainedPairs(H, G, (D, V), K, own).double()
    for key, tensor in random_weights(policy).items():
        retained.policy_weights[key].data.copy_(tensor)
    seen: list[tuple[HeldPairs, Tensor]] = []
    score = own.policy.score

    def record(pairs: HeldPairs) -> Tensor:
        seen.append((pairs, score(pairs)))
        return seen[-1][1]

    own.policy.score = record  # type: ignore[method-assign]
    _, state = streamed(qkv, [LENGTH], case, retained, is_softmax=True)
    pairs, scores = seen[-1]
    counts = state.counts
    assert counts.sum(1).eq(G * K).all()
    assert counts.min() >= 2
    assert counts.ne(K).any()
    for b in range(B):
        candidates = [
            (float(scores[b, g, i]), g, int(pairs.positions[b, g, i]))
            for g in range(G)
            for i in range(pairs.num_candidates)
            if pairs.valid[b, g, i]
        ]
        candidates.sort(reverse=True)
        kept = [[x for x in candidates if x[1] == g][:2] for g in range(G)]
        best = [*kept[0], *kept[1]]
        best += [x for x in candidates if x not in best][: G * K - len(best)]
        expected = [sorted(j for _, own_head, j in best if own_head == g) for g in range(G)]
        assert positions_by_head(state)[b] == expected


def test_adakv_rejects_policies_without_ranks() -> None:
    for name in ("cascading", "adakv"):
        with pytest.raises(InputError, match=f"adakv cannot have the scores of '{name}'"):
            AdaKV(name)
