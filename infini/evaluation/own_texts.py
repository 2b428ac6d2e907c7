"""A user's own texts and model, as `evaluate` and `bench` read them.

Every row of their tables is a `Reader`, a way to read the same texts.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini import processes
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import Piece, cut_text, encode_text
from infini.corpus.splits import Text
from infini.errors import InputError, shown
from infini.evaluation.baselines import window_protocol
from infini.evaluation.byte_budget import full_attention_bytes, max_state_bytes
from infini.evaluation.cost import TOKENS_PER_CALL
from infini.evaluation.perplexity import score_full_attention, score_in_chunks
from infini.evaluation.score import Score
from infini.model.architectures import context_length, vocabulary_size
from infini.model.base import load_base, tokenizer_of
from infini.model.loading import load
from infini.model.modules import has_memory
from infini.model.retrofit import remove, sliding_window
from infini.model.serialization import CONFIG_FILE


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
    retained: int | None = None
    budget: int | None = None  # in bytes


def window_reader(base: PreTrainedModel, window: int, sinks: int, length: int) -> Reader:
    """Return the base's sliding window with sinks.

    Args:
        base: The untouched base.
        window: Tokens of the window.
        sinks: First tokens that are always attended to.
        length: Tokens of the longest text.
    """
    name, title = window_protocol(window), f"window of {window}"
    with sliding_window(base, window, sinks) as model:
        tokens = torch.zeros(1, length, dtype=torch.int64, device=base.device)
        state = most_state_bytes(model, tokens)
    score, reading = partial(read_in_chunks, base), sliding_window(base, window, sinks)
    return Reader(name, title, window, state, score, reading, is_baseline=True)


def full_attention_reader(base: PreTrainedModel, length: int) -> Reader:
    """Return the base's full attention up to its own context.

    In a longer text a token sees at least half of it.

    Args:
        base: The untouched base.
        length: Tokens of the longest text.
    """
    context = context_length(base) or length
    score = partial(read_in_chunks, base)
    if context < length:
        score = partial(_read_in_contexts, base, context)
    state = full_attention_bytes(base, min(context, length - 1))
    return Reader("full", "full attention", None, state, score, nullcontext())


def read_in_chunks(model: PreTrainedModel, pieces: Pieces, title: str) -> Score:
    """Score texts in chunks of `TOKENS_PER_CALL`; `title` names the bar over a batch's chunks."""
    return score_in_chunks(model, pieces, TOKENS_PER_CALL, title)


def _read_in_contexts(base: PreTrainedModel, context: int, pieces: Pieces, title: str) -> Score:
    stride = max(1, context // 2)
    return score_full_attention(base, pieces, context, stride, window_title=title)


def most_state_bytes(model: PreTrainedModel, longest: Tensor) -> int:
    """Count a retrofitted model's state bytes at their maximum.

    A state of constant size is complete after a window or a segment.

    Args:
        model: The model.
        longest: Tokens of the longest text, (1, T).
    """
    config = model.infini_config
    if config["method"] == "window":
        segment, enough = 1, config["window"] + config["sinks"] + 2
    else:
        segment = config["segment_length"]
        enough = 2 * segment if config["segmented"] else longest.shape[1]
    return max_state_bytes(model, longest[:, :enough], segment).total


def named_texts(texts: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the texts by name, "text 1" and so on where they have none.

    Raises:
        InputError: There is none, one is no text, or two are equal.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Sequence) and not isinstance(texts, bytes):
        texts = {f"text {number}": text for number, text in enumerate(texts, 1)}
    if not isinstance(texts, Mapping):
        raise InputError(f"texts must be a list of texts, got {shown(texts)}")
    if not texts:
        raise InputError("texts must have ≥ 1 text, got 0")
    first_with: dict[str, str] = {}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{name}: must be a text, got {shown(text)}")
        if (first := first_with.setdefault(text, name)) != name:
            raise InputError(f"{name}: the same text as {first}: give every text once")
    return dict(texts)


def load_any_model(
    model: PreTrainedModel | str | Path, base: str | Path | None = None
) -> PreTrainedModel:
    """Return a loaded model as it is, or load a saved one or a base.

    Args:
        model: A model, its folder or its hub name.
        base: Folder or hub name of a saved model's base, if it has moved.

    Raises:
        InputError: It cannot be loaded.
    """
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


def encode_texts(
    texts: Mapping[str, str],
    model: PreTrainedModel,
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
) -> list[Piece]:
    """Tokenize texts, each after the tokenizer's beginning of text if it adds one.

    Args:
        texts: Texts by name.
        model: The model that will read them.
        tokenizer: Its tokenizer; None: it is loaded from where the base was.
        max_tokens: First tokens of each text that are read; None: all.

    Returns:
        The tokens of each text.

    Raises:
        InputError: A text without two tokens, or a tokenizer that does not fit the model.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    pieces = [_encode(name, text, tokenizer, max_tokens) for name, text in texts.items()]
    if (largest := max(max(piece.tokens) for piece in pieces)) >= vocabulary_size(model):
        raise InputError(
            f"tokenizer: tokens must be < {vocabulary_size(model)}, the model's vocabulary, "
            f"got {largest}: give the model's own tokenizer"
        )
    return pieces


def _encode(name: str, text: str, tokenizer: Tokenizer, max_tokens: int | None) -> Piece:
    """Return the first tokens of a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: half a surrogate pair, no UTF-8 text") from None
    if not text.strip():
        raise InputError(f"{name}: empty, must have ≥ 2 tokens")
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer must be a fast one, got {type(tokenizer).__name__}")
    encoded = encode_text(Text(name, text), tokenizer, max_tokens or len(text))
    length = len(encoded.begin) + len(encoded.ids)
    if length < 2:
        raise InputError(f"{name}: must have ≥ 2 tokens, got {length}")
    return cut_text(encoded, max_tokens or length, 2)[0]


def pad_pieces(pieces: list[Piece], indices: list[int]) -> Pieces:
    """Return some of the texts as padded rows.

    Args:
        pieces: Tokens of all texts.
        indices: The texts to return.
    """
    rows = [torch.tensor(pieces[index].tokens) for index in indices]
    tokens = pad_sequence(rows, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    sizes = torch.tensor([pieces[index].bytes for index in indices])
    return Pieces(tokens, mask, sizes, torch.tensor(indices))


@contextmanager
def untouched_copies(
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
