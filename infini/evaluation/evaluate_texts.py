"""A user's own texts: a model beside its base with full attention and with an equal window.

Every row of the table is a way to read the same texts, with its state bytes, so that more of them
(retention policies, byte budgets) are more rows.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini import processes
from infini.choices import check_integer
from infini.console.progress import progress
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import Piece, cut_text, encode_text
from infini.corpus.splits import Text
from infini.errors import InputError, shown
from infini.evaluation.baselines import (
    equal_window,
    max_state_bytes,
    token_bytes,
    window_protocol,
)
from infini.evaluation.cost import TOKENS_PER_CALL
from infini.evaluation.estimates import Metrics, difference, perplexity_metrics, with_errors
from infini.evaluation.losses import BATCH_TOKENS
from infini.evaluation.perplexity import score_full_attention, score_in_chunks
from infini.evaluation.score import Score
from infini.model.architectures import context_length, vocabulary_size
from infini.model.base import load_base, tokenizer_of
from infini.model.loading import load
from infini.model.modules import has_memory
from infini.model.retrofit import remove, sliding_window
from infini.model.serialization import CONFIG_FILE

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
        >>> table = infini.evaluate("my-memory", [open(file).read() for file in files])
        >>> table.loc["model", ["gain", "gain_se"]]
    """
    named = _named_texts(texts)
    loaded = _load(model, base)
    _check_options(loaded, window, sinks)
    tokenizer = tokenizer or tokenizer_of(loaded)
    pieces = [_encode(name, text, tokenizer) for name, text in named.items()]
    if (largest := max(max(piece.tokens) for piece in pieces)) >= vocabulary_size(loaded):
        raise InputError(
            f"tokenizer: tokens must be < {vocabulary_size(loaded)}, the model's vocabulary, "
            f"got {largest}: give the model's own tokenizer"
        )
    with _untouched_copies(loaded) as (memory_model, base_model):
        longest = torch.tensor([max((piece.tokens for piece in pieces), key=len)])
        readers = _readers(memory_model, base_model, longest, window, sinks)
        groups = _group_by_length(pieces)
        losses = {reader.name: _losses(reader, groups) for reader in readers}
    return _table(readers, losses)


class Reader(NamedTuple):
    """A way to read texts: a row of the table."""

    name: str
    title: str  # in progress bars
    window: int | None
    state_bytes: int
    # Scores pieces; its last argument is the title of a bar over a batch's chunks
    score: Callable[[Pieces, str], Score]
    # Entered while it reads
    context: AbstractContextManager[object]
    is_baseline: bool = False  # others' gains are over it


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
    per_token, past = token_bytes(base), longest.shape[1] - 1
    in_chunks = partial(_score_in_chunks, base)
    readers = []
    if model is not None:
        total = _state_bytes(model, longest)
        size = model.infini_config.get("window")
        score = partial(_score_in_chunks, model)
        readers.append(Reader("model", "model", size, total, score, nullcontext()))
        window = equal_window(base, total, sinks)
    if window is not None:
        name = "baseline" if readers else window_protocol(window)
        state = per_token * min(window + sinks - 1, past)
        reading = sliding_window(base, window, sinks)
        title = f"window of {window}"
        readers.append(Reader(name, title, window, state, in_chunks, reading, is_baseline=True))
    context = context_length(base) or past + 1
    score = partial(_score_full_attention, base, context)
    state = per_token * min(context, past)
    return [*readers, Reader("full", "full attention", None, state, score, nullcontext())]


def _score_in_chunks(model: PreTrainedModel, pieces: Pieces, title: str) -> Score:
    return score_in_chunks(model, pieces, TOKENS_PER_CALL, title)


def _score_full_attention(base: PreTrainedModel, context: int, pieces: Pieces, title: str) -> Score:
    stride = max(1, context // 2)
    return score_full_attention(base, pieces, context, stride, window_title=title)


def _state_bytes(model: PreTrainedModel, longest: Tensor) -> int:
    """Count a retrofitted model's state bytes at their maximum.

    A state of constant size is complete after a window or a segment.
    """
    config = model.infini_config
    if config["method"] == "window":
        segment, enough = 1, config["window"] + config["sinks"] + 2
    else:
        segment = config["segment_length"]
        enough = 2 * segment if config["segmented"] else longest.shape[1]
    return max_state_bytes(model, longest[:, :enough], segment).total


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


def _named_texts(texts: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the texts by name, "text 1" and so on where they have none."""
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Sequence) and not isinstance(texts, bytes):
        texts = {f"text {number}": text for number, text in enumerate(texts, 1)}
    if not isinstance(texts, Mapping):
        raise InputError(f"texts must be a list of texts, got {shown(texts)}")
    if not texts:
        raise InputError("texts must have ≥ 1 text, got 0")
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{name}: must be a text, got {shown(text)}")
    return dict(texts)


def _load(model: PreTrainedModel | str | Path, base: str | Path | None) -> PreTrainedModel:
    """Return a loaded model as it is, or load a saved one or a base."""
    if isinstance(model, str | Path):
        folder = Path(model).expanduser()
        if (folder / CONFIG_FILE).is_file():
            return load(folder, base).to(processes.device())
        if base is None:
            return load_base(str(model)).to(processes.device())
    elif not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model must be a model of transformers, its folder or its hub name, got "
            f"{type(model).__name__} (of a peft model, give model.get_base_model())"
        )
    if base is not None:
        raise InputError("base is only for the folder of a saved model with a memory")
    return model


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


def _encode(name: str, text: str, tokenizer: Tokenizer) -> Piece:
    """Return the tokens of a text, after the tokenizer's beginning of text if it adds one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: half a surrogate pair, no UTF-8 text") from None
    if not text.strip():
        raise InputError(f"{name}: empty, must have ≥ 2 tokens")
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer must be a fast one, got {type(tokenizer).__name__}")
    encoded = encode_text(Text(name, text), tokenizer, len(text))
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer.encode(""):
        encoded.ids.insert(0, tokenizer.bos_token_id)
        encoded.offsets.insert(0, (0, 0))
    if len(encoded.ids) < 2:
        raise InputError(f"{name}: must have ≥ 2 tokens, got {len(encoded.ids)}")
    return cut_text(encoded, len(encoded.ids), 2)[0]


def _group_by_length(pieces: list[Piece]) -> list[Pieces]:
    """Return all pieces, each a text, in padded groups of at most `BATCH_TOKENS` tokens."""
    groups: list[list[int]] = []
    for index in sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens)):
        width = len(pieces[index].tokens)
        if not groups or width * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(index)
    return [_pad(pieces, group) for group in groups]


def _pad(pieces: list[Piece], indices: list[int]) -> Pieces:
    rows = [torch.tensor(pieces[index].tokens) for index in indices]
    tokens = pad_sequence(rows, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    sizes = torch.tensor([pieces[index].bytes for index in indices])
    return Pieces(tokens, mask, sizes, torch.tensor(indices))


@contextmanager
def _untouched_copies(
    model: PreTrainedModel,
) -> Iterator[tuple[PreTrainedModel | None, PreTrainedModel]]:
    """Yield copies in evaluation mode that share a model's tensors: it, if retrofitted; its base.

    Modules of the model itself, a policy of the user's among them, stay as they are.
    """
    tensors = [*model.parameters(), *model.buffers()]
    trainable = [tensor.requires_grad for tensor in tensors]

    def shared_copy() -> PreTrainedModel:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()

    try:
        yield shared_copy() if has_memory(model) else None, remove(shared_copy())
    finally:
        for tensor, earlier in zip(tensors, trainable, strict=True):
            tensor.requires_grad_(earlier)
