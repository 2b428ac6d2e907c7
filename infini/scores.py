"""Scores of text, and how sure they are: every error is a standard error over texts.

Tokens of a text are not independent, texts are. A figure is a ratio of two sums over texts
(nats a token, bits a byte, a share of a gain), its standard error that of a ratio estimator
(Cochran, Sampling Techniques, 1977, § 6.4). Differences are taken on the same pieces, so that
what makes one text harder than another cancels.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from infini import engine

Metrics = dict[str, Any]


class Estimate(NamedTuple):
    """A figure and its standard error (NaN where there is one text only)."""

    value: float
    error: float


def ratio(numerator: "pd.Series[float]", denominator: "pd.Series[float]") -> Estimate:
    """Σ numerator / Σ denominator over independent texts, and the standard error of it."""
    n, total = len(numerator), denominator.sum()
    value = numerator.sum() / total
    if n < 2:
        return Estimate(value, math.nan)
    residuals = numerator - value * denominator
    return Estimate(value, math.sqrt(n / (n - 1) * (residuals**2).sum()) / abs(total))


@dataclass
class Score:
    """Losses of pieces of text, each at the position that predicts."""

    nats: Tensor  # (n, T) float32, zero where nothing is scored
    scored: Tensor  # (n, T) bool
    bytes: Tensor  # of a piece's scored tokens: (n,)
    texts: Tensor  # which text a piece is from: (n,)

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return int(self.scored.sum())

    @property
    def total(self) -> float:
        """Nats of all of them."""
        return self.nats.double().sum().item()

    @property
    def perplexity(self) -> float:
        """exp(nats a token)."""
        return _exp(self.total / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable across vocabularies."""
        return self.total / math.log(2) / int(self.bytes.sum())

    def of_all_processes(self) -> "Score":
        """Every process's own rows put together: the others' are zero."""
        nats, scored = (
            engine.total(x.to(engine.device())).cpu() for x in (self.nats, self.scored.long())
        )
        return Score(nats, scored.bool(), self.bytes, self.texts)

    def table(self, segment_length: int) -> pd.DataFrame:
        """Long: piece, text, bytes (of the piece), segment, distance, tokens, nats.

        segment: index of the segment that predicts. distance: tokens since the document's
        start, its own included, in powers of two (1, 2, 4, … as lower ends).
        """
        piece, place = torch.where(self.scored)
        distance = 2 ** torch.log2(place + 1.0).floor().long()
        rows = pd.DataFrame(
            {
                "piece": piece,
                "text": self.texts[piece],
                "bytes": self.bytes[piece],
                "segment": place // segment_length,
                "distance": distance,
                "tokens": 1,
                "nats": self.nats[self.scored].double(),
            }
        )
        keys = ["piece", "text", "bytes", "segment", "distance"]
        return rows.groupby(keys, as_index=False).sum()


def by_piece(table: pd.DataFrame) -> pd.DataFrame:
    """A score's table summed by piece: text, bytes, tokens, nats."""
    return table.groupby("piece").agg(
        {"text": "first", "bytes": "first", "tokens": "sum", "nats": "sum"}
    )


def _by_text(pieces: pd.DataFrame) -> pd.DataFrame:
    return pieces.groupby("text").sum()


def figures(table: pd.DataFrame) -> Metrics:
    """Perplexity and bits per byte with their standard errors."""
    texts = _by_text(by_piece(table))
    nats, bits = (
        ratio(texts["nats"], texts["tokens"]),
        ratio(texts["nats"] / math.log(2), texts["bytes"]),
    )
    ppl = _exp(nats.value)
    return with_errors(
        ppl=Estimate(ppl, ppl * nats.error), bits_per_byte=Estimate(bits.value, bits.error)
    )


def difference(table: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    """Nats a token of `table` less those of `other`, on the pieces that both have."""
    texts = _by_text(_both(table, other))
    return ratio(texts["nats"] - texts["nats_other"], texts["tokens"])


def recovery(ours: pd.DataFrame, base: pd.DataFrame, ceiling: pd.DataFrame) -> Estimate:
    """Context recovery: (base − ours) / (base − ceiling), in nats on the pieces all three have."""
    pieces = _merge_pieces(_both(ours, base), by_piece(ceiling)[["nats"]], "_ceiling")
    texts = _by_text(pieces)
    return ratio(texts["nats_other"] - texts["nats"], texts["nats_other"] - texts["nats_ceiling"])


def _merge_pieces(pieces: pd.DataFrame, other: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Those in both, the other's columns with `suffix` behind their names."""
    return pieces.join(other.add_suffix(suffix), how="inner")


def _both(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Two scores of the same text by piece, the other's with `_other` behind the names."""
    pieces = _merge_pieces(by_piece(table), by_piece(other), "_other")
    assert (pieces["tokens"] == pieces["tokens_other"]).all(), "not the same tokens are scored"
    return pieces


def curve(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Perplexity by `segment` or `distance`, with its standard error: columns ppl, ppl_se."""
    rows = {}
    for key, part in table.groupby(by):
        texts = part.groupby("text")[["nats", "tokens"]].sum()
        nats = ratio(texts["nats"], texts["tokens"])
        rows[key] = {"ppl": _exp(nats.value), "ppl_se": _exp(nats.value) * nats.error}
    return pd.DataFrame.from_dict(rows, "index").rename_axis(by)


def difference_curve(table: pd.DataFrame, other: pd.DataFrame, by: str) -> pd.DataFrame:
    """`difference` by `segment` or `distance`: columns nats, nats_se."""
    rows = {}
    for key, part in table.groupby(by):
        value, error = difference(part, other[other[by] == key])
        rows[key] = {"nats": value, "nats_se": error}
    return pd.DataFrame.from_dict(rows, "index").rename_axis(by)


def with_errors(**estimates: Estimate) -> Metrics:
    """name → value and name_se → its standard error, which is left out if it is not known."""
    metrics: Metrics = {}
    for name, (value, error) in estimates.items():
        metrics[name] = rounded(value)
        if math.isfinite(error):
            metrics[f"{name}_se"] = rounded(error)
    return metrics


def mean_and_spread(runs: list[Metrics]) -> Metrics:
    """The mean of the same metrics of several seeds; `spread`: their standard deviations.

    One run: as it is. A figure that only some runs have is that of those; one that is the same in
    all of them, or is a standard error itself, has no spread.
    """
    if len(runs) == 1:
        return runs[0]
    mean, spread = _merge(runs)
    return mean | {"spread": spread}


def _merge(runs: list[Metrics]) -> tuple[Metrics, Metrics]:
    mean: Metrics = {}
    spread: Metrics = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if key in run]
        if isinstance(values[0], dict):
            mean[key], below = _merge(values)
            if below:
                spread[key] = below
        elif len(set(values)) == 1:
            mean[key] = values[0]
        else:
            mean[key] = rounded(float(np.mean(values)))
            if not key.endswith("_se"):
                spread[key] = rounded(float(np.std(values, ddof=1)))
    return mean, spread


def rounded(value: Any) -> Any:
    """Six significant digits: what tables print, and what reruns reproduce."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _exp(nats: float) -> float:
    return math.exp(min(nats, 80.0))
