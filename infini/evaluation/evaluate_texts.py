"""A user's own texts: a model beside its base with full attention and with an equal window.

Retention policies at several byte budgets are compared by `bench_policies`.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import check_integer
from infini.console.progress import progress
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import Piece
from infini.errors import InputError
from infini.evaluation.byte_budget import equal_window, full_attention_bytes
from infini.evaluation.estimates import Metrics, difference, perplexity_metrics, with_errors
from infini.evaluation.losses import BATCH_TOKENS
from infini.evaluation.own_texts import (
    Reader,
    encode_texts,
    full_attention_reader,
    load_any_model,
    most_state_bytes,
    named_texts,
    pad_pieces,
    read_in_chunks,
    untouched_copies,
    window_reader,
)
from infini.model.architectures import context_length
from infini.model.modules import has_memory

_COUNTS = ("window", "state_bytes", "texts", "tokens")
_FIGURES = ("nats", "ppl", "bits_per_byte", "gain")


def evaluate(
    model: PreTrainedModel | str | Path,
    texts: str | Sequence[str] | Mapping[str, str],
    *,
    base: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    window: int | None = None,
    sinks: int = 4,
) -> pd.DataFrame:
    """Compare a model with a memory on your own texts with what its base can do without training.

    Needs the extra `infini[pipeline]`. Every token but a text's first is scored once (the first
    too, where the tokenizer begins a text with a special token). Standard errors are over texts;
    one text gives none.

    Args:
        model: A retrofitted model; a folder that its `save_pretrained` wrote; or a base without a
            memory, loaded, its folder or its hub name. A loaded model is itself again afterwards.
        texts: A text, several, or several by name; of any lengths. Names are for error messages.
        base: Folder or hub name of a saved model's base, if it has moved.
        tokenizer: The base's; None: it is loaded from where the base was.
        window: Only for a base without a memory: window to score it with, in tokens.
        sinks: First tokens that a window of the base always sees.

    Returns:
        A table with a row for each way to read the texts. Row `model`: the model with its memory,
        in chunks, as it reads any text. Row `baseline`: the untouched base with the smallest
        sliding window with sinks that has at least the model's state bytes, at most its own
        context; for a base without a memory the row is `window_<n>`. Row `full`: the untouched
        base with full attention up to its own context; in a longer text a token sees at least
        half of it.

        Columns: `window` (tokens), `state_bytes` at most (in the longest text), `texts`, `tokens`
        scored, `nats` per token, `ppl`, `bits_per_byte`, and `gain`, nats per token below the
        window of the base, paired by text; each figure's standard error in `<name>_se`. What does
        not exist is missing (NaN).

    Raises:
        InputError: A text without two tokens, a model that cannot be loaded, or options that do
            not fit it.

    Examples:
        >>> table = infini.evaluate("my-model", [open(file).read() for file in files])
        >>> table.loc["model", ["gain", "gain_se"]]
    """
    named = named_texts(texts)
    loaded = load_any_model(model, base)
    _check_options(loaded, window, sinks)
    pieces = encode_texts(named, loaded, tokenizer)
    with untouched_copies(loaded) as (memory_model, base_model):
        longest = torch.tensor([max((piece.tokens for piece in pieces), key=len)])
        readers = _readers(memory_model, base_model, longest, window, sinks)
        groups = _group_by_length(pieces)
        losses = {reader.name: _losses(reader, groups) for reader in readers}
    return _table(readers, losses)


def _readers(
    model: PreTrainedModel | None,
    base: PreTrainedModel,
    longest: Tensor,
    window: int | None,
    sinks: int,
) -> list[Reader]:
    """Return the model (None: there is none), a window of the base and its full attention.

    longest: Tokens of the longest text, (1, T).
    """
    readers = []
    if model is not None:
        total = most_state_bytes(model, longest)
        size = model.infini_config.get("window")
        score = partial(read_in_chunks, model)
        readers.append(Reader("model", "model", size, total, score, nullcontext()))
        window = equal_window(base, total, sinks)
        length = longest.shape[1]
        if full_attention_bytes(base, length - 1) <= total:  # the baseline may hold the whole text
            window = max(window, length - sinks)
    if window is not None:
        reader = window_reader(base, window, sinks, longest.shape[1])
        readers.append(reader._replace(name="baseline") if readers else reader)
    return [*readers, full_attention_reader(base, longest.shape[1])]


def _losses(reader: Reader, groups: list[Pieces]) -> pd.DataFrame:
    """Score all groups; return a loss table with a row per text, under one progress bar."""
    outer, inner = (reader.title, "") if len(groups) > 1 else ("", reader.title)
    with reader.context:
        scores = [reader.score(group, inner) for group in progress(groups, outer)]
    tables = [score.table(score.nats.shape[1]) for score in scores]
    return pd.concat([table.assign(piece=table["text"]) for table in tables])


def _table(readers: list[Reader], losses: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return figures and gains by reader."""
    rows: dict[str, Metrics] = {}
    baseline = next((losses[reader.name] for reader in readers if reader.is_baseline), None)
    for reader in readers:
        own = losses[reader.name]
        row = {"window": reader.window, "state_bytes": reader.state_bytes}
        row |= {"texts": own["text"].nunique(), "tokens": int(own["tokens"].sum())}
        row |= perplexity_metrics(own)
        if baseline is not None and not reader.is_baseline:
            row |= with_errors(gain=difference(baseline, own))
        rows[reader.name] = row
    names = [*_COUNTS, *chain.from_iterable((name, f"{name}_se") for name in _FIGURES)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=names)
    return table.astype({name: "Int64" if name in _COUNTS else "float64" for name in names})


def _check_options(model: PreTrainedModel, window: int | None, sinks: int) -> None:
    """Raise InputError for a window or sinks that the model or its base cannot have."""
    check_integer("sinks", sinks, 0)
    longest = context_length(model)
    if window is not None:
        check_integer("window", window, 1)
        if has_memory(model):
            raise InputError("window is only for a base without a memory: the model has its own")
    if longest is not None and sinks + (window or 1) > longest:
        raise InputError(
            f"window + sinks must be ≤ {longest}, the base's context, got {(window or 1) + sinks}"
        )


def _group_by_length(pieces: list[Piece]) -> list[Pieces]:
    """Return all pieces, each a text, in padded groups of at most `BATCH_TOKENS` tokens."""
    groups: list[list[int]] = []
    for index in sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens)):
        width = len(pieces[index].tokens)
        if not groups or width * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(index)
    return [pad_pieces(pieces, group) for group in groups]
