"""What a memory must beat: the base's window of the same bytes, and the version's own control.

A window of exact keys and values is what anyone gets without a memory; whatever is trained on a
text also learns its style, which the control has learnt too, its memory being another document's.
"""

from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from infini.evaluation import estimates
from infini.evaluation.cost import StateBytes, carried, itemised, read
from infini.evaluation.estimates import Metrics, difference, perplexity, share, with_errors
from infini.evaluation.protocols import HeldOutText
from infini.model.architectures import context_length
from infini.model.forward import window_override
from infini.model.loading import loaded

WINDOW = "window"  # before a window's size: the protocol's name in loss tables


def of(losses: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One protocol's rows."""
    return losses[losses["protocol"] == protocol]


def token_bytes(base: PreTrainedModel, text: HeldOutText) -> int:
    """Of a token's keys and values, in all layers of the untouched base."""
    few = text.long.tokens[:1, :8].to(base.device)
    return carried(read(base, few)).exact // few.shape[1]


def window_bytes(base: PreTrainedModel, text: HeldOutText, size: int) -> int:
    """That a window of `size` tokens, the one being read included, carries with its sinks."""
    return token_bytes(base, text) * (text.recipes.window.sinks + size - 1)


def equal_window(base: PreTrainedModel, text: HeldOutText, carries: int) -> int:
    """The smallest window that carries at least so many bytes, or the base's whole context."""
    sinks, longest = text.recipes.window.sinks, context_length(base)
    size = max(1, -(-carries // token_bytes(base, text)) - sinks + 1)
    return size if longest is None else min(size, longest - sinks)


def max_state_bytes(model: PreTrainedModel, text: HeldOutText) -> StateBytes:
    """At a document's end, where a segment is as long as it gets before it is forgotten."""
    length = text.segment_length
    tokens = text.long.tokens[:1, : text.long.tokens.shape[1] // length * length - 1]
    return carried(read(model, tokens.to(model.device)))


def opponents(
    base: PreTrainedModel,
    control: Path,
    text: HeldOutText,
    carries: int,
    untouched: pd.DataFrame,
    window: int | None = None,
) -> pd.DataFrame:
    """Loss tables of the base's window of so many bytes, and of a control where there is one.

    untouched: the base's own, which has some windows already. window: of the control, if not its
    own.
    """
    size = equal_window(base, text, carries)
    known = of(untouched, f"{WINDOW}{size}").assign(protocol="equal_bytes")
    scores = {"equal_bytes": text.window(base, size)} if known.empty else {}
    if control.is_dir():
        with loaded(control, base) as model, window_override(model, window):
            scores["control"] = text.documents(model, "swapped", "documents, control")
    return pd.concat([known, *([text.tables(scores)] if scores else [])])


def at_other_windows(
    base: PreTrainedModel, folders: tuple[Path, Path], text: HeldOutText, untouched: pd.DataFrame
) -> tuple[Metrics, list[pd.DataFrame]]:
    """The same weights read with each of `evaluate.window.extra_sizes`: figures and losses by window.

    folders: of the version, by a window, and of its control. The losses' protocols end in _w<size>.
    """
    metrics, tables = Metrics(), []
    for size in text.recipes.window.extra_sizes:
        with loaded(folders[0], base) as model, window_override(model, size):
            kept = max_state_bytes(model, text)
            losses = text.tables({"documents": text.documents(model)})
        theirs = opponents(base, folders[1], text, kept.total, untouched, size)
        losses = pd.concat([losses, theirs])
        against = against_opponents(losses, untouched)
        against["equal_bytes"]["window"] = equal_window(base, text, kept.total)
        nats = perplexity(of(losses, "documents"))
        metrics[f"w{size}"] = {"documents": nats, "bytes": itemised(kept)} | against
        tables.append(losses.assign(protocol=losses["protocol"] + f"_w{size}"))
    return metrics, tables


def against_opponents(losses: pd.DataFrame, base: pd.DataFrame) -> Metrics:
    """A version's losses against its opponents', paired by document; see DIFFERENCES.

    losses: of protocols documents, equal_bytes and, where it has them, control, memory_off,
    memory_swapped. base: the untouched base's, of segmented and full.
    """
    ours, window, full = of(losses, "documents"), of(losses, "equal_bytes"), of(base, "full")
    blind = of(base, "segmented")
    gain = difference(window, ours)
    metrics: Metrics = {
        "equal_bytes": estimates.perplexity(window) | with_errors(gain=gain),
        "vs_base": with_errors(nats=difference(ours, blind)),
        "context_recovery": with_errors(share=share(ours, blind, blind, full)),
        "pays": 0,
    }
    for name, protocol in (("gain", "memory_off"), ("swapped_gain", "memory_swapped")):
        if len(other := of(losses, protocol)):
            more = with_errors(**{name: difference(other, ours)})
            metrics["memory"] = metrics.get("memory", {}) | more
    control = of(losses, "control")
    if len(control):
        worth = difference(control, ours)
        metrics["control"] = estimates.perplexity(control) | with_errors(worth=worth)
        metrics["recovery"] = with_errors(share=share(ours, control, window, full))
        metrics["pays"] = int(gain.is_gain and worth.is_gain)
    return metrics
