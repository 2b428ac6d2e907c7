"""Baselines of a memory: the untouched base's window of equal cache size, and the control.

A sliding window with sinks is what anyone gets without a memory. Whatever is trained on a corpus
also learns its style; the control has learnt that too, with another document's memory.
"""

from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from infini.evaluation.byte_budget import equal_window, max_state_bytes
from infini.evaluation.estimates import (
    Metrics,
    difference,
    perplexity_metrics,
    rows_of_protocol,
    share_of_gap,
    with_errors,
)
from infini.evaluation.protocols import HeldOutText
from infini.model.forward import window_override
from infini.model.loading import loaded


def window_protocol(size: int) -> str:
    """Return the name of a window's protocol in loss tables and metrics."""
    return f"window_{size}"


def score_baselines(
    base: PreTrainedModel,
    control: Path,
    text: HeldOutText,
    total: int,
    base_losses: pd.DataFrame,
    window: int | None = None,
) -> pd.DataFrame:
    """Score the window of equal cache size and the control.

    Args:
        base: The untouched base.
        control: Folder of the control; it need not exist.
        text: What to score on.
        total: The version's state bytes.
        base_losses: The untouched base's loss tables, which have some windows already.
        window: Window that the control is read with; None: its own.

    Returns:
        Loss tables of the protocols baseline and, if there is a control, control.
    """
    size = equal_window(base, total, text.recipes.window.sinks)
    known = rows_of_protocol(base_losses, window_protocol(size)).assign(protocol="baseline")
    scores = {"baseline": text.window(base, size)} if known.empty else {}
    if control.is_dir():
        with loaded(control, base) as model, window_override(model, window):
            scores["control"] = text.documents(model, "swapped", "documents, control")
    return pd.concat([known, *([text.tables(scores)] if scores else [])])


def evaluate_extra_windows(
    base: PreTrainedModel, folders: tuple[Path, Path], text: HeldOutText, base_losses: pd.DataFrame
) -> tuple[Metrics, list[pd.DataFrame]]:
    """Score the same weights with each window of `evaluate.window.extra_sizes`.

    Args:
        base: The untouched base.
        folders: Folders of a window version and of its control.
        text: What to score on.
        base_losses: The untouched base's loss tables.

    Returns:
        Metrics under at_window_<size>, and loss tables, whose protocols have the same suffix.
    """
    metrics, tables = Metrics(), []
    for size in text.recipes.window.extra_sizes:
        with loaded(folders[0], base) as model, window_override(model, size):
            state = max_state_bytes(model, text.long_documents.tokens[:1], text.segment_length)
            losses = text.tables({"documents": text.documents(model)})
        baselines = score_baselines(base, folders[1], text, state.total, base_losses, size)
        losses = pd.concat([losses, baselines])
        gains = gains_over_baselines(losses, base_losses)
        gains["baseline"]["window"] = equal_window(base, state.total, text.recipes.window.sinks)
        documents = perplexity_metrics(rows_of_protocol(losses, "documents"))
        own = {"documents": documents, "state_bytes": state.as_metrics()}
        metrics[f"at_window_{size}"] = own | gains
        tables.append(losses.assign(protocol=losses["protocol"] + f"_at_window_{size}"))
    return metrics, tables


def gains_over_baselines(losses: pd.DataFrame, base_losses: pd.DataFrame) -> Metrics:
    """Compare a version with its baselines, paired by document.

    Args:
        losses: Its loss tables: documents, baseline and, if it has them, control, memory_off and
            memory_swapped.
        base_losses: The untouched base's: segmented and full.

    Returns:
        Gains (nats per token below) over each protocol that there is, `vs_segmented`, with a
        control `recovery`; `beats_both`: 1 if the gains over baseline and control are positive by
        more than two standard errors; averaged over seeds, it is 1 only if every seed beats both.
        Figures of `estimates.DIFFERENCES`.
    """
    ours, window = (rows_of_protocol(losses, name) for name in ("documents", "baseline"))
    segmented, full = (rows_of_protocol(base_losses, name) for name in ("segmented", "full"))
    gain = difference(window, ours)
    metrics: Metrics = {
        "baseline": perplexity_metrics(window) | with_errors(gain=gain),
        "vs_segmented": with_errors(
            nats=difference(ours, segmented),
            recovery=share_of_gap(ours, segmented, segmented, full),
        ),
        "beats_both": 0,
    }
    for protocol in ("memory_off", "memory_swapped"):
        if len(other := rows_of_protocol(losses, protocol)):
            metrics[protocol] = perplexity_metrics(other) | with_errors(
                gain=difference(other, ours)
            )
    control = rows_of_protocol(losses, "control")
    if len(control):
        over_control = difference(control, ours)
        metrics["control"] = perplexity_metrics(control) | with_errors(gain=over_control)
        metrics["recovery"] = with_errors(share=share_of_gap(ours, control, window, full))
        metrics["beats_both"] = int(gain.is_gain and over_control.is_gain)
    return metrics
