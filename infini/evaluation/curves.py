"""Curves of an evaluation: all that the report draws, as rows of reports/curves/<version>.csv.

Columns: curve, x, series, value, se (empty where no error is known).

| curve | x | series |
|---|---|---|
| ppl_by_segment, ppl_by_distance | segment; tokens since the start | protocol |
| nats_vs_segmented_by_segment, …_by_distance | the same | protocol |
| nats_by_document | test document, from 0 | protocol; of several seeds "<protocol> seed <n>" |
| nats_vs_full_by_state_bytes | bytes from one token to the next | protocol |
| passkey_exact_by_distance, recall_exact_by_distance | tokens from fact to answer | protocol |
| recall_exact_by_pairs | facts in the text | protocol |
| passkey_gain_by_depth | 0 the start, 1 right before the question | "<n> segments" |
| gate | head | "layer <i>" |

Distances are lower ends of powers of two. Losses are means over seeds, their errors are over
texts, paired where two protocols are compared; a gate's error is its deviation over seeds.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from infini.evaluation.estimates import (
    NATS_BY_DOCUMENT,
    Estimate,
    Metrics,
    by_piece,
    curve,
    difference,
    difference_curve,
    mean_over_seeds,
    rows_of_protocol,
)
from infini.evaluation.rounding import Digits

COLUMNS = ["curve", "x", "series", "value", "se"]
KEYS = ["curve", "x", "series"]
ERRORS = {"value": "se"}
CURVE_DIGITS = Digits(decimals=4)

Row = tuple[str, Any, str, Estimate]


def curve_table(
    metrics: Metrics,
    losses: pd.DataFrame,
    questions: pd.DataFrame,
    gates: pd.DataFrame,
    base_losses: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compute all curves of a model.

    Args:
        metrics: Its metrics.
        losses: Its loss tables (`Score.table`), columns protocol and seed added.
        questions: Its retrieval questions (`score_retrieval`); empty: none were asked.
        gates: Columns layer, head, gate, seed.
        base_losses: The untouched base's loss tables; None: the model is the base.

    Returns:
        The table, with `COLUMNS`.
    """
    documents = _documents(losses)
    losses = mean_over_seeds(losses)
    base = losses if base_losses is None else base_losses
    rows = [*_loss_curves(losses, base), *documents, *_state_bytes(metrics, losses, base)]
    rows += [*_retrieval_curves(questions, base_losses is None), *_gate_curve(gates)]
    return pd.DataFrame(
        [(*row[:3], row[3].value, row[3].error) for row in rows], columns=COLUMNS
    ).astype({"x": object, "value": float, "se": float})


def _loss_curves(losses: pd.DataFrame, base: pd.DataFrame) -> Iterator[Row]:
    """Yield perplexity, and nats above the base's segments, by segment and by distance."""
    protocols = ("segmented", "full") if losses is base else ("documents",)
    for by in ("segment", "distance"):
        for protocol in protocols:
            for x, ppl in curve(rows_of_protocol(losses, protocol), by).items():
                yield f"ppl_by_{by}", x, protocol, ppl
        ours, segmented = rows_of_protocol(losses, protocol), rows_of_protocol(base, "segmented")
        for x, nats in difference_curve(ours, segmented, by).items():
            yield f"nats_vs_segmented_by_{by}", x, protocol, nats


def _documents(losses: pd.DataFrame) -> Iterator[Row]:
    """Yield nats per token of every test document, by which other readings are paired."""
    several = losses["seed"].nunique() > 1
    for (protocol, seed), rows in losses.groupby(["protocol", "seed"], sort=False):
        if protocol == "full" or protocol.startswith("documents"):
            series = f"{protocol} seed {seed}" if several else protocol
            pieces = by_piece(rows)
            for piece, nats in (pieces["nats"] / pieces["tokens"]).items():
                yield NATS_BY_DOCUMENT, piece, series, Estimate(nats)


def _state_bytes(metrics: Metrics, losses: pd.DataFrame, base: pd.DataFrame) -> Iterator[Row]:
    """Yield nats above the base's full attention on the same documents, by state bytes."""
    total = metrics["state_bytes"]["total"]
    sizes = {"segmented": total} if losses is base else {"documents": total, "control": total}
    sizes |= {
        name: figures["state_bytes"]
        for name, figures in metrics.items()
        if name.startswith("window_")
    }
    full = rows_of_protocol(base, "full")
    for protocol, size in sizes.items():
        if len(ours := rows_of_protocol(losses, protocol)):
            yield "nats_vs_full_by_state_bytes", size, protocol, difference(ours, full)


def _retrieval_curves(questions: pd.DataFrame, is_base: bool) -> Iterator[Row]:
    """Yield shares of exact answers, and the memory's gain in nats an answer."""
    if questions.empty:
        return
    protocols = {"documents": "exact"}
    if is_base:
        protocols = {"segmented": "exact", "full": "exact_full"}
    for task, by in (("passkey", "distance"), ("recall", "pairs"), ("recall", "distance")):
        rows = questions[questions["task"] == task]
        x = rows[by]
        if by == "distance":
            x = 2 ** np.log2(x).astype(int)
        for protocol, column in protocols.items():
            if column not in rows:
                continue
            for at, share in rows[column].groupby(x).mean().dropna().items():
                yield f"{task}_exact_by_{by}", at, protocol, Estimate(share)
    rows = questions[questions["task"] == "passkey"]
    if not is_base:
        gain = (rows["log_prob"] - rows["log_prob_off"]).groupby([rows["segments"], rows["depth"]])
        for (segments, depth), nats in gain.mean().items():
            yield "passkey_gain_by_depth", depth, f"{segments:.0f} segments", Estimate(nats)


def _gate_curve(gates: pd.DataFrame) -> Iterator[Row]:
    """Yield every head's gate."""
    for (layer, head), seeds in gates.groupby(["layer", "head"])["gate"]:
        error = seeds.std() if len(seeds) > 1 else None
        yield "gate", head, f"layer {layer}", Estimate(seeds.mean(), error)
