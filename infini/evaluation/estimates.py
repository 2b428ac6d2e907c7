"""Figures with standard errors over texts.

Tokens of a text are not independent, texts are. A figure is a ratio of two sums over texts
(nats per token, bits a byte, a share of a gain), its standard error that of a ratio estimator
(Cochran, Sampling Techniques, 1977, § 6.4). Differences are paired by piece of text, which
cancels what makes one text harder than another.

A loss table has a row per piece, segment and distance (see `Score.table`). Metrics are what the
JSON files hold: nested names, a figure's error beside it under <name>_se.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from infini.errors import InputError
from infini.files import flatten

Metrics = dict[str, Any]

NATS_BY_DOCUMENT = "nats_by_document"  # curve by which readings of the same documents are paired

# Differences between two scores of the same text: noise may explain them.
DIFFERENCES = frozenset(
    {
        "baseline.gain",
        "control.gain",
        "recovery.share",
        "vs_segmented.nats",
        "memory_off.gain",
        "memory_swapped.gain",
        "vs_segmented.recovery",
        "passkey.gain",
        "recall.gain",
        "vs_version.nats",
    }
)


class Estimate(NamedTuple):
    """Figure with its standard error over test texts and, if there are several, seeds."""

    value: float
    error: float | None = None  # None: not known, as for one text alone
    difference: bool = False  # between two scores of the same text

    @property
    def is_gain(self) -> bool:
        """Whether the value is positive by more than two standard errors."""
        return self.value > 0 and not self.is_noise

    @property
    def is_noise(self) -> bool:
        """Whether the value is within two standard errors of zero, or its error is not known."""
        if self.error is None or math.isnan(self.error):
            return True
        return self.error > 0 and abs(self.value) <= 2 * self.error

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate in another unit, such as per cent."""
        error = None if self.error is None else abs(factor) * self.error
        return self._replace(value=factor * self.value, error=error)


def ratio(numerator: "pd.Series[float]", denominator: "pd.Series[float]") -> Estimate:
    """Estimate a ratio of two sums over independent texts.

    Args:
        numerator: One number per text.
        denominator: One number per text.

    Returns:
        Σ numerator / Σ denominator with its standard error; for one text without.
    """
    n, total = len(numerator), denominator.sum()
    value = numerator.sum() / total
    if n < 2:
        return Estimate(value)
    residuals = numerator - value * denominator
    return Estimate(value, math.sqrt(n / (n - 1) * (residuals**2).sum()) / abs(total))


def rows_of_protocol(losses: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Return one protocol's rows of several loss tables."""
    return losses[losses["protocol"] == protocol]


def by_piece(table: pd.DataFrame) -> pd.DataFrame:
    """Sum a loss table by piece: columns text, bytes, tokens, nats."""
    return table.groupby("piece").agg(
        {"text": "first", "bytes": "first", "tokens": "sum", "nats": "sum"}
    )


def mean_over_seeds(losses: pd.DataFrame) -> pd.DataFrame:
    """Average loss tables over seeds (column seed): a row's nats are the mean of all seeds'."""
    if losses["seed"].nunique() == 1:
        return losses.drop(columns="seed")
    rows = [name for name in losses.columns if name not in ("seed", "nats")]
    return losses.groupby(rows, as_index=False, sort=False)["nats"].mean()


def _by_text(pieces: pd.DataFrame) -> pd.DataFrame:
    return pieces.groupby("text").sum()


def perplexity_metrics(table: pd.DataFrame) -> Metrics:
    """Compute nats (per token), ppl and bits_per_byte of a loss table, with standard errors."""
    texts = _by_text(by_piece(table))
    bits = ratio(texts["nats"] / math.log(2), texts["bytes"])
    nats = ratio(texts["nats"], texts["tokens"])
    return with_errors(nats=nats, ppl=perplexity_of(nats), bits_per_byte=bits)


def perplexity_of(nats: Estimate) -> Estimate:
    """Convert nats per token to perplexity, at most e^80."""
    value = math.exp(min(nats.value, 80.0))
    return Estimate(value, None if nats.error is None else value * nats.error)


def difference(table: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    """Estimate how many nats per token `table` is above `other`, on pieces that both have."""
    texts = _by_text(_both(table, other))
    return ratio(texts["nats"] - texts["nats_other"], texts["tokens"])


def share_of_gap(
    ours: pd.DataFrame, other: pd.DataFrame, floor: pd.DataFrame, ceiling: pd.DataFrame
) -> Estimate:
    """Estimate (other − ours) / (floor − ceiling), in nats on the pieces that all four have."""
    pieces = _both(ours, other)
    for table, suffix in ((floor, "_floor"), (ceiling, "_ceiling")):
        pieces = _merge_pieces(pieces, by_piece(table)[["nats"]], suffix)
    texts = _by_text(pieces)
    return ratio(texts["nats_other"] - texts["nats"], texts["nats_floor"] - texts["nats_ceiling"])


def _merge_pieces(pieces: pd.DataFrame, other: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Join the pieces in both, `suffix` added to the names of the other's columns."""
    return pieces.join(other.add_suffix(suffix), how="inner")


def _both(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Join two scores of the same text by piece, `_other` added to the other's names."""
    pieces = _merge_pieces(by_piece(table), by_piece(other), "_other")
    for name in ("tokens", "bytes"):
        if not (pieces[name] == pieces[f"{name}_other"]).all():
            raise InputError("two losses are not of the same text: run stage evaluate_ppl again")
    return pieces


def curve(table: pd.DataFrame, by: str) -> "pd.Series[Any]":
    """Compute perplexity by `segment` or `distance`, an Estimate per row."""
    rows = {}
    for key, part in table.groupby(by):
        texts = part.groupby("text")[["nats", "tokens"]].sum()
        rows[key] = perplexity_of(ratio(texts["nats"], texts["tokens"]))
    return _estimates_by(rows, by)


def difference_curve(table: pd.DataFrame, other: pd.DataFrame, by: str) -> "pd.Series[Any]":
    """Compute `difference` by `segment` or `distance`, an Estimate per row."""
    parts = table.groupby(by)
    return _estimates_by({k: difference(part, other[other[by] == k]) for k, part in parts}, by)


def _estimates_by(rows: dict[Any, Estimate], by: str) -> "pd.Series[Any]":
    # pandas would turn a list of tuples into columns
    cells = pd.Series(index=pd.Index(rows, name=by), dtype=object)
    for key, estimate in rows.items():
        cells[key] = estimate
    return cells


def with_errors(**estimates: Estimate) -> Metrics:
    """Return metrics of named estimates: name, and name_se if an error is known."""
    metrics: Metrics = {}
    for name, estimate in estimates.items():
        metrics[name] = rounded(estimate.value)
        if estimate.error is not None:
            metrics[f"{name}_se"] = rounded(estimate.error)
    return metrics


def estimates_of(metrics: Metrics) -> dict[str, Estimate]:
    """Return estimates of metrics, the inverse of `with_errors`; nested names joined by dots.

    A figure's error joins its `_se` over texts and its `spread` over seeds: they are independent,
    so their squares add up.
    """
    flat = flatten({key: value for key, value in metrics.items() if key != "spread"})
    spread = flatten(metrics.get("spread", {}))

    def error(key: str) -> float | None:
        known = [x for x in (flat.get(f"{key}_se"), spread.get(key)) if x is not None]
        return math.hypot(*known) if known else None

    return {
        key: Estimate(value, error(key), key in DIFFERENCES)
        for key, value in flat.items()
        if not key.endswith("_se")
    }


def mean_and_spread(runs: list[Metrics]) -> Metrics:
    """Average metrics over seeds.

    Args:
        runs: The same metrics of each seed. A figure that only some have is averaged over those.

    Returns:
        The means, `seeds` (the number of runs), and under `spread` the standard deviations,
        except of standard errors and of figures that are the same in all runs. One run is returned
        as it is.
    """
    if len(runs) == 1:
        return runs[0]
    mean, spread = _merge(runs)
    return mean | {"seeds": len(runs), "spread": spread}


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
    """Round a float to six significant digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
