"""What a memory must beat: the base's window of the same bytes, and the version's own control.

A window of exact keys and values is what anyone gets without a memory; whatever is trained on a
text also learns its style, which the control has learnt too, its memory being another document's.
"""

import pandas as pd
from transformers import PreTrainedModel

from infini.evaluation import estimates
from infini.evaluation.cost import carried, read
from infini.evaluation.estimates import Metrics, difference, share, with_errors
from infini.evaluation.protocols import HeldOutText
from infini.model.architectures import context_of


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
    sinks, longest = text.recipes.window.sinks, context_of(base)
    size = max(1, -(-carries // token_bytes(base, text)) - sinks + 1)
    return size if longest is None else min(size, longest - sinks)


def against_opponents(losses: pd.DataFrame, base: pd.DataFrame) -> Metrics:
    """A version's losses against its opponents', paired by document; see DIFFERENCES.

    losses: of protocols documents, memory_off, memory_swapped, equal_bytes and, where it has a
    control, control. base: the untouched base's, of segmented and full.
    """
    ours, window, full = of(losses, "documents"), of(losses, "equal_bytes"), of(base, "full")
    blind = of(base, "segmented")
    gain = difference(window, ours)
    metrics: Metrics = {
        "equal_bytes": estimates.perplexity(window) | with_errors(gain=gain),
        "memory": with_errors(
            gain=difference(of(losses, "memory_off"), ours),
            swapped_gain=difference(of(losses, "memory_swapped"), ours),
        ),
        "vs_base": with_errors(nats=difference(ours, blind)),
        "context_recovery": with_errors(share=share(ours, blind, blind, full)),
        "pays": 0,
    }
    control = of(losses, "control")
    if len(control):
        worth = difference(control, ours)
        metrics["control"] = estimates.perplexity(control) | with_errors(worth=worth)
        metrics["recovery"] = with_errors(share=share(ours, control, window, full))
        metrics["pays"] = int(gain.is_gain and worth.is_gain)
    return metrics
