"""Losses of every token: their sums, and the table by segment and distance."""

import math

import pytest
import torch

from infini.evaluation.estimates import perplexity_metrics
from infini.evaluation.score import Score

L = 4


@pytest.fixture
def score() -> Score:
    """Three pieces of two texts; the last token of each has no target."""
    lengths = torch.tensor([20, 7, 2])
    scored = torch.arange(20) < lengths[:, None] - 1
    nats = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    return Score(nats * scored, scored, 3 * lengths, torch.tensor([0, 0, 1]))


def test_score_properties_cover_all_tokens(score: Score) -> None:
    nats = [score.nats[i, j].item() for i, n in enumerate((19, 6, 1)) for j in range(n)]
    assert score.tokens == len(nats) == 26
    assert score.total == pytest.approx(sum(nats))
    assert score.mean == pytest.approx(sum(nats) / 26)
    assert score.perplexity == pytest.approx(math.exp(sum(nats) / 26))
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / 87)


def test_table_by_segment_and_distance(score: Score) -> None:
    expected: dict[tuple[int, int, int], list[float]] = {}
    for piece in range(3):
        for place in range(20):
            if score.scored[piece, place]:
                distance = next(2**k for k in range(9, -1, -1) if 2**k <= place + 1)
                key = (piece, place // L, distance)
                expected.setdefault(key, []).append(score.nats[piece, place].item())
    table = score.table(L).set_index(["piece", "segment", "distance"])
    assert set(table.index) == set(expected)
    for key, nats in expected.items():
        assert table.loc[key, "tokens"] == len(nats)
        assert table.loc[key, "nats"] == pytest.approx(sum(nats))
        assert table.loc[key, "text"] == (key[0] == 2)
        assert table.loc[key, "bytes"] == (60, 21, 6)[key[0]]


def test_table_has_the_same_perplexity(score: Score) -> None:
    shown = perplexity_metrics(score.table(L))
    assert shown["ppl"] == pytest.approx(math.exp(score.total / score.tokens), rel=1e-5)
    assert shown["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-5)


def test_of_all_processes_with_one_process(score: Score) -> None:
    whole = score.of_all_processes()
    assert torch.equal(whole.nats, score.nats)
    assert torch.equal(whole.scored, score.scored)
    assert whole.scored.dtype == torch.bool
