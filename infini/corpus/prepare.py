"""Texts cut into pieces of one length: short samples and long documents, by split.

Prepared once as Parquet, one file a split.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.config import Data
from infini.corpus.pieces import train_val_sizes
from infini.corpus.splits import SPLITS, Text, split_of
from infini.errors import InputError

CHARACTERS = 8  # that a token seldom has more of, on average
MARGIN = 64  # last tokens of a part that may be others where its text goes on


class Piece(NamedTuple):
    """Consecutive tokens of one text."""

    text_id: str
    start: int  # tokens before it in its text
    tokens: list[int]
    bytes: int  # UTF-8 bytes of all its tokens but the first, which is never scored


class Encoded(NamedTuple):
    """A text and its tokens."""

    text: Text
    ids: list[int]
    offsets: list[tuple[int, int]]  # characters of the text that each token covers


def encode(text: Text, tokenizer: Tokenizer, enough: int) -> Encoded:
    """A text's tokens, no special ones; of a very long text the first `enough` and their part."""
    size = (enough + MARGIN) * CHARACTERS
    while True:
        encoded = tokenizer(
            text.text[:size], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if size >= len(text.text):
            return Encoded(text, ids, offsets)
        if len(ids) >= enough + MARGIN:
            read = offsets[enough - 1][1]
            return Encoded(text._replace(text=text.text[:read]), ids[:enough], offsets[:enough])
        size *= 2


def cut(encoded: Encoded, length: int, minimum: int) -> list[Piece]:
    """A text's consecutive pieces of `length` tokens; the last one from `minimum` tokens on."""
    text, ids, offsets = encoded
    pieces = []
    for start in range(0, len(ids) - minimum + 1, length):
        end = min(start + length, len(ids))
        scored = text.text[offsets[start][1] : offsets[end - 1][1]]
        pieces.append(Piece(text.id, start, ids[start:end], len(scored.encode())))
    return pieces


class Prepared(NamedTuple):
    """What a corpus gave."""

    samples: dict[str, list[Piece]]  # by split
    documents: dict[str, list[Piece]]  # by split
    counts: dict[str, dict[str, int]]  # by split: texts, tokens and characters read


class Rounds:
    """The pieces wanted of a split: every text's first, then every text's second, and so on."""

    def __init__(self, wanted: int):
        self.wanted, self.rounds = wanted, list[list[Piece]]()

    def add(self, pieces: list[Piece]) -> None:
        """Another text's; what cannot be wanted any more is dropped."""
        for number, piece in enumerate(pieces):
            if number == len(self.rounds):
                self.rounds.append([])
            self.rounds[number].append(piece)
        spare = sum(map(len, self.rounds)) - self.wanted
        while spare > 0:
            last = self.rounds[-1]
            dropped = min(spare, len(last))
            del last[len(last) - dropped :]
            spare -= dropped
            if not last:
                self.rounds.pop()

    @property
    def enough(self) -> bool:
        """Whether first pieces are all that is wanted."""
        return bool(self.rounds) and len(self.rounds[0]) >= self.wanted

    def pieces(self) -> list[Piece]:
        """In order, as many as wanted or fewer."""
        return list(chain.from_iterable(self.rounds))


def prepare(texts: Iterable[Text], tokenizer: Tokenizer, data: Data) -> Prepared:
    """Short samples and long documents by split, and what was read.

    Each text gives its first piece before any gives its second. Reading stops as soon as
    first pieces are enough, so that a streamed corpus is never read whole; of no text is more
    read, and of no split more kept, than can be wanted.
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
    enough = max(n * lengths[kind][0] for kind, q in quotas.items() for n in q.values())
    found = {kind: {split: Rounds(n) for split, n in q.items()} for kind, q in quotas.items()}
    read = {split: Counter(texts=0, tokens=0, characters=0) for split in SPLITS}
    skipped = 0
    for text in texts:
        split = split_of(text.id, data.shares)
        encoded = encode(text, tokenizer, enough)
        read[split].update(texts=1, tokens=len(encoded.ids), characters=len(encoded.text.text))
        if split == "base":
            continue
        if split == "test" and len(encoded.ids) >= data.document_length:
            skipped += 1
            if skipped <= data.test.skip:
                continue
        for kind, (length, minimum) in lengths.items():
            found[kind][split].add(cut(encoded, length, minimum))
        if all(rounds.enough for by_split in found.values() for rounds in by_split.values()):
            break

    kept: dict[str, dict[str, list[Piece]]] = {}
    for kind, by_split in found.items():
        kept[kind] = {}
        for split, rounds in by_split.items():
            pieces, wanted = rounds.pieces(), quotas[kind][split]
            if len(pieces) < wanted:
                raise InputError(
                    f"params.yaml: data.{kind}: {data.corpus!r} has {len(pieces)} pieces of "
                    f"{lengths[kind][0]} tokens for split {split!r}, {wanted} are needed; "
                    f"lower data.{kind}, data.test.{kind} or data.test.skip, or change data.shares"
                )
            kept[kind][split] = pieces
    counts = {split: dict(count) for split, count in read.items()}
    return Prepared(kept["samples"], kept["documents"], counts)


def write(pieces: dict[str, list[Piece]], folder: Path) -> None:
    """One Parquet file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in pieces.items():
        table = pd.DataFrame(rows, columns=Piece._fields)
        table.to_parquet(folder / f"{split}.parquet", write_page_checksum=True)
