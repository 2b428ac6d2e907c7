"""Texts cut into pieces of equal length: short samples and long documents, by split.

Stage prepare_data writes them once as Parquet, a file a split.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.config import Data
from infini.corpus.pieces import train_val_sizes
from infini.corpus.special_tokens import beginning_of_text
from infini.corpus.splits import SPLITS, Text, split_of
from infini.errors import InputError

CHARACTERS_PER_TOKEN = 8  # an average that texts seldom exceed
SPARE_TOKENS = 64  # at the end of a cut text, where tokens may differ from those of the whole


class Piece(NamedTuple):
    """Consecutive tokens of one text."""

    text_id: str
    start: int  # index of its first token in its text
    tokens: list[int]  # after the token that begins a text, where the tokenizer adds one
    bytes: int  # UTF-8 bytes of all tokens but the first, which is never scored


class EncodedText(NamedTuple):
    """A text and its tokens."""

    text: Text
    ids: list[int]
    offsets: list[tuple[int, int]]  # characters of the text that each token covers
    begin: list[int]  # the token that every piece begins with; empty: none


class Prepared(NamedTuple):
    """Pieces that a corpus gave, and how much of it was read."""

    samples: dict[str, list[Piece]]  # by split
    documents: dict[str, list[Piece]]  # by split
    counts: dict[str, dict[str, int]]  # texts, tokens and characters read, by split


def encode_text(text: Text, tokenizer: Tokenizer, enough: int) -> EncodedText:
    """Tokenize a text, its special tokens apart.

    Args:
        text: the text.
        tokenizer: a fast tokenizer.
        enough: how many tokens are needed at most; of a much longer text only so many are read.
    """
    size, begin = (enough + SPARE_TOKENS) * CHARACTERS_PER_TOKEN, beginning_of_text(tokenizer)
    while True:
        encoded = tokenizer(
            text.text[:size], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if size >= len(text.text):
            return EncodedText(text, ids, offsets, begin)
        if len(ids) >= enough + SPARE_TOKENS:
            end = offsets[enough - 1][1]
            text = text._replace(text=text.text[:end])
            return EncodedText(text, ids[:enough], offsets[:enough], begin)
        size *= 2


def cut_text(encoded: EncodedText, length: int, minimum: int) -> list[Piece]:
    """Cut a text into consecutive pieces of `length` tokens; the last has at least `minimum`.

    Both include the token that every piece begins with.
    """
    text, ids, offsets, begin = encoded
    step, pieces = length - len(begin), []
    for start in range(0, len(ids) + len(begin) - minimum + 1, step):
        end = min(start + step, len(ids))
        first = offsets[start][0 if begin else 1]  # the first token of a piece is never scored
        scored = text.text[first : offsets[end - 1][1]]
        pieces.append(Piece(text.id, start, [*begin, *ids[start:end]], len(scored.encode())))
    return pieces


class RoundRobin:
    """Selection of `wanted` pieces: every text's first, then every text's second, and so on."""

    def __init__(self, wanted: int):
        self.wanted = wanted
        self._ranked = list[tuple[int, Piece]]()  # (number of the piece in its text, piece)

    def add(self, pieces: list[Piece]) -> None:
        """Add a text's pieces, and drop what can no longer be selected."""
        ranked = [*self._ranked, *enumerate(pieces)]
        self._ranked = sorted(ranked, key=itemgetter(0))[: self.wanted]  # stable: texts in order

    @property
    def full(self) -> bool:
        """Whether first pieces alone fill the selection."""
        return len(self._ranked) == self.wanted and self._ranked[-1][0] == 0

    def pieces(self) -> list[Piece]:
        """Return the selected pieces in order, at most `wanted`."""
        return [piece for _, piece in self._ranked]


def prepare(texts: Iterable[Text], tokenizer: Tokenizer, data: Data) -> Prepared:
    """Cut texts into short samples and long documents by split.

    Reading stops once every selection is full, so that a streamed corpus is never read whole.

    Args:
        texts: texts of a corpus.
        tokenizer: a fast tokenizer, the base's.
        data: section `data` of params.yaml.

    Raises:
        InputError: a split has too few texts.
    """
    quotas = {
        kind: dict(zip(("train", "val", "test"), (*train_val_sizes(total), test), strict=True))
        for kind, total, test in (
            ("samples", data.samples, data.test.samples),
            ("documents", data.documents, data.test.documents),
        )
    }
    lengths = {
        "samples": (data.segment_length, data.segment_length // 2),
        "documents": (data.document_length, data.document_length),
    }
    enough = max(n * lengths[kind][0] for kind, quota in quotas.items() for n in quota.values())
    selected = {
        kind: {s: RoundRobin(n) for s, n in quota.items()} for kind, quota in quotas.items()
    }
    counts = {split: Counter(texts=0, tokens=0, characters=0) for split in SPLITS}
    skipped = 0
    for text in texts:
        split = split_of(text.id, data.shares)
        encoded = encode_text(text, tokenizer, enough)
        counts[split].update(texts=1, tokens=len(encoded.ids), characters=len(encoded.text.text))
        if split == "base":
            continue
        documents = cut_text(encoded, *lengths["documents"])
        if split == "test" and documents:
            skipped += 1
            if skipped <= data.test.skip:
                continue
        selected["samples"][split].add(cut_text(encoded, *lengths["samples"]))
        selected["documents"][split].add(documents)
        if all(robin.full for by_split in selected.values() for robin in by_split.values()):
            break
    pieces = {
        kind: {split: robin.pieces() for split, robin in by_split.items()}
        for kind, by_split in selected.items()
    }
    for kind, quota in quotas.items():
        for split, wanted in quota.items():
            if (found := len(pieces[kind][split])) < wanted:
                raise InputError(
                    f"params.yaml: data.{kind}: split {split!r} of {data.corpus!r} has {found} of "
                    f"{wanted} pieces of {lengths[kind][0]} tokens; lower data.{kind}, "
                    f"data.test.{kind} or data.test.skip, or change data.shares"
                )
    counted = {split: dict(count) for split, count in counts.items()}
    return Prepared(pieces["samples"], pieces["documents"], counted)


def write_pieces(pieces: dict[str, list[Piece]], folder: Path) -> None:
    """Write pieces by split, one Parquet file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in pieces.items():
        table = pd.DataFrame(rows, columns=Piece._fields)
        table.to_parquet(folder / f"{split}.parquet", write_page_checksum=True)


def prepared_record(prepared: Prepared, segment_length: int) -> dict[str, Any]:
    """Return what reports/prepared.json records.

    Returns:
        splits: texts, tokens, characters, samples and documents by split; padding_share:
        share of padding in the training samples; sha256: hash of all pieces.
    """
    samples, documents, counts = prepared
    for split, count in counts.items():
        count["samples"] = len(samples.get(split, []))
        count["documents"] = len(documents.get(split, []))
    tokens = sum(len(piece.tokens) for piece in samples["train"])
    digest = hashlib.sha256(repr((samples, documents)).encode()).hexdigest()
    padding = 1 - tokens / (len(samples["train"]) * segment_length)
    return {"splits": counts, "padding_share": round(padding, 4), "sha256": digest}
