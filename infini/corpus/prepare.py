"""Texts cut into pieces of one length: short samples and long documents, by split.

Prepared once as Parquet, one file a split.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.config import Data
from infini.corpus.pieces import train_val_sizes
from infini.corpus.splits import SPLITS, Text, split_of
from infini.errors import InputError


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


def encode(text: Text, tokenizer: Tokenizer) -> Encoded:
    """All of a text's tokens, no special ones."""
    encoded = tokenizer(
        text.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return Encoded(text, encoded["input_ids"], encoded["offset_mapping"])


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


def prepare(texts: Iterable[Text], tokenizer: Tokenizer, data: Data) -> Prepared:
    """Short samples and long documents by split, and what was read.

    Each text gives its first piece before any gives its second. Reading stops as soon as
    first pieces are enough, so that a streamed corpus is never read whole.
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
    # kind → split → one list of pieces a text
    found: dict[str, dict[str, list[list[Piece]]]] = {
        k: {s: [] for s in q} for k, q in quotas.items()
    }
    read = {split: Counter(texts=0, tokens=0, characters=0) for split in SPLITS}
    for text in texts:
        split = split_of(text.id, data.shares)
        encoded = encode(text, tokenizer)
        read[split].update(texts=1, tokens=len(encoded.ids), characters=len(text.text))
        if split == "base":
            continue
        for kind, (length, minimum) in lengths.items():
            if pieces := cut(encoded, length, minimum):
                found[kind][split].append(pieces)
        if all(len(found[k][s]) >= n for k, q in quotas.items() for s, n in q.items()):
            break

    kept: dict[str, dict[str, list[Piece]]] = {}
    for kind, by_split in found.items():
        kept[kind] = {}
        for split, by_text in by_split.items():
            rounds = chain.from_iterable(zip_longest(*by_text))
            pieces = [piece for piece in rounds if piece is not None]
            wanted = quotas[kind][split]
            if len(pieces) < wanted:
                raise InputError(
                    f"params.yaml: data.{kind}: {data.corpus!r} has {len(pieces)} pieces of "
                    f"{lengths[kind][0]} tokens for split {split!r}, {wanted} are needed; "
                    f"lower data.{kind} or data.test.{kind}, or change data.shares"
                )
            kept[kind][split] = pieces[:wanted]
    counts = {split: dict(count) for split, count in read.items()}
    return Prepared(kept["samples"], kept["documents"], counts)


def write(pieces: dict[str, list[Piece]], folder: Path) -> None:
    """One Parquet file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in pieces.items():
        pd.DataFrame(rows, columns=Piece._fields).to_parquet(folder / f"{split}.parquet")
