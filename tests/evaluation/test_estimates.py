"""Estimates and their errors against slow loops and resampling."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from infini.evaluation.estimates import (
    Estimate,
    curve,
    difference,
    difference_curve,
    estimates_of,
    mean_and_spread,
    mean_over_seeds,
    perplexity_metrics,
    ratio,
    rounded,
    share_of_gap,
    with_errors,
)
from infini.evaluation.score import Score

L = 4


def score(nats: torch.Tensor, lengths: list[int], texts: list[int]) -> Score:
    scored = torch.arange(nats.shape[1]) < torch.tensor(lengths)[:, None] - 1
    return Score(nats * scored, scored, 3 * torch.tensor(lengths), torch.tensor(texts))


def texts(count: int, seed: int, hard: float = 1.0) -> Score:
    """Return losses of documents that differ in difficulty for all models alike."""
    shared = np.random.default_rng(0).gamma(4, 0.5, (count, 1))
    own = np.random.default_rng(seed).gamma(4, 0.25, (count, 20))
    nats = torch.tensor(hard * shared + own, dtype=torch.float32)
    return score(nats, [20 - i % 5 for i in range(count)], list(range(count)))


def test_ratio_error_matches_resampling() -> None:
    table = texts(60, 1).table(L).groupby("text")[["nats", "tokens"]].sum()
    value, error, _ = ratio(table["nats"], table["tokens"])
    draws = np.random.default_rng(2).integers(60, size=(4000, 60))
    nats, tokens = (table[c].to_numpy()[draws].sum(1) for c in ("nats", "tokens"))
    assert value == pytest.approx(table["nats"].sum() / table["tokens"].sum())
    assert error == pytest.approx((nats / tokens).std(), rel=0.05)


def test_ratio_of_one_text_has_no_error() -> None:
    assert ratio(pd.Series([3.0]), pd.Series([2.0])) == Estimate(1.5)
    assert with_errors(x=Estimate(1.5)) == {"x": 1.5}
    assert with_errors(x=Estimate(1.5, 0.1)) == {"x": 1.5, "x_se": 0.1}


def test_perplexity_error_treats_pieces_of_a_text_as_dependent() -> None:
    nats = torch.tensor([[1.0] * 5, [1.0] * 5, [3.0] * 5, [3.0] * 5])
    apart = perplexity_metrics(score(nats, [6] * 4, [0, 1, 2, 3]).table(L))
    together = perplexity_metrics(score(nats, [6] * 4, [0, 0, 1, 1]).table(L))
    assert apart["ppl"] == together["ppl"]
    assert together["ppl_se"] > 1.5 * apart["ppl_se"]


def test_difference_is_paired() -> None:
    ours, base = texts(40, 1).table(L), texts(40, 2).table(L)
    paired = difference(ours, base)
    alone = [ratio(t["nats"], t["tokens"]) for t in (x.groupby("text").sum() for x in (ours, base))]
    assert paired.value == pytest.approx(alone[0].value - alone[1].value)
    assert paired.error < 0.5 * math.hypot(alone[0].error, alone[1].error)
    fewer = difference(ours, base[base["piece"] < 10])
    assert fewer.value == pytest.approx(
        difference(ours[ours["piece"] < 10], base[base["piece"] < 10]).value
    )


def test_share_of_gap_between_floor_and_ceiling() -> None:
    base = texts(20, 1)
    ceiling, ours, other = (
        Score(base.nats * factor, base.scored, base.bytes, base.texts).table(L)
        for factor in (0.8, 0.9, 0.95)
    )
    found = share_of_gap(ours, other, base.table(L), ceiling)
    assert found.value == pytest.approx(0.25, rel=1e-4)
    assert found.error == pytest.approx(0, abs=1e-6)  # the same share of every text


def test_curve_and_difference_curve() -> None:
    ours, base = texts(30, 1).table(L), texts(30, 2).table(L)
    segments = curve(ours, "segment")
    second = ours[ours["segment"] == 1]
    expected = math.exp(second["nats"].sum() / second["tokens"].sum())
    assert segments[1].value == pytest.approx(expected)
    assert all(estimate.error > 0 for estimate in segments)
    apart = difference_curve(ours, base, "distance")
    assert list(apart.index) == [1, 2, 4, 8, 16]
    both = difference(ours[ours["distance"] == 4], base[base["distance"] == 4])
    assert apart[4] == both


def test_mean_over_seeds_averages_each_row() -> None:
    one, other = texts(20, 1).table(L), texts(20, 2).table(L)
    both = mean_over_seeds(pd.concat([one.assign(seed=0), other.assign(seed=1)]))
    assert len(both) == len(one)
    apart = [difference(table, one).value for table in (both, other)]
    assert apart[0] == pytest.approx(apart[1] / 2)
    pd.testing.assert_frame_equal(mean_over_seeds(one.assign(seed=3)), one)


def test_estimates_of_inverts_with_errors() -> None:
    found = {"passkey": with_errors(gain=Estimate(0.1, 0.2), rank=Estimate(3.0)), "n": 7}
    assert estimates_of(found) == {
        "passkey.gain": Estimate(0.1, 0.2, difference=True),
        "passkey.rank": Estimate(3.0),
        "n": Estimate(7),
    }
    spread = estimates_of(found | {"spread": {"passkey": {"gain": 0.7}}})
    assert spread["passkey.gain"] == Estimate(0.1, math.hypot(0.2, 0.7), difference=True)


@pytest.mark.parametrize(
    ("estimate", "noise"),
    [
        (Estimate(1.0, 0.6), True),
        (Estimate(-1.0, 0.4), False),
        (Estimate(1.0, 0.0), False),
        (Estimate(1.0, None), True),
    ],
)
def test_is_noise_within_two_errors_or_unknown(estimate: Estimate, noise: bool) -> None:
    assert estimate.is_noise == noise
    assert estimate.scaled(-100) == Estimate(
        -100 * estimate.value, estimate.error and 100 * estimate.error
    )
    assert estimate._replace(error=float("nan")).is_noise


def test_mean_and_spread() -> None:
    one = {"a": {"ppl": 10.0, "ppl_se": 1.0}, "epochs": 3, "same": 7}
    assert mean_and_spread([one]) == one
    other = {"a": {"ppl": 14.0, "ppl_se": 3.0}, "epochs": 5, "same": 7, "only": 1.0}
    both = mean_and_spread([one, other])
    assert both["a"] == {"ppl": 12.0, "ppl_se": 2.0}
    assert (both["epochs"], both["same"]) == (4.0, 7)
    assert both["spread"]["a"] == {"ppl": rounded(math.sqrt(8))}
    assert both["spread"]["epochs"] == rounded(math.sqrt(2))
    assert "same" not in both["spread"]


def test_rounded_to_six_digits() -> None:
    assert rounded(1234567.89) == 1234570.0
    assert rounded(1 / 3) == 0.333333
    assert rounded(7) == 7
