"""Tokens cut into pieces of one length: short samples and long documents.

Prepared once as Parquet, one file a split; loaded as padded tensors with their mask.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError
from infini.params import Data
from infini.splits import SPLITS, Text, split_of

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Consecutive tokens of one text."""

    text_id: str
    start: int  # tokens before it in its text
    tokens: list[int]
    bytes: int  # UTF-8 bytes of all its tokens but the first, which is never scored


class Batch(NamedTuple):
    """Pieces as tensors."""

    tokens: Tensor  # (B, T), zero on padding
    mask: Tensor  # real tokens: (B, T), bool


@dataclass
class Pieces:
    """All pieces of a split."""

    tokens: Tensor  # (n, T), zero on padding
    mask: Tensor  # real tokens: (n, T), bool
    bytes: Tensor  # (n,)
    texts: Tensor  # number of the text that each is from: (n,)

    @classmethod
    def load(cls, file: str | Path, limit: int | None = None, width: int = 0) -> "Pieces":
        """The first `limit` pieces of a prepared file, padded to `width` tokens or the longest."""
        if not Path(file).is_file():
            raise InputError(f"{file}: not found; run stage prepare_data first")
        table = pd.read_parquet(file)
        if limit is not None and limit > len(table):
            raise InputError(f"{file}: {limit} pieces asked for, it has {len(table)}")
        table = table[:limit]
        rows = [torch.tensor(tokens) for tokens in table["tokens"]]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = F.pad(tokens, (0, max(0, width - tokens.shape[1])))
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        texts, _ = pd.factorize(table["text_id"])
        return cls(tokens, mask, torch.tensor(table["bytes"].to_numpy()), torch.tensor(texts))

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: "Pieces") -> "Pieces":
        """Both, of different texts, one after the other; the widths must agree."""
        other = replace(other, texts=other.texts + self.texts.max() + 1)
        return Pieces(*map(torch.cat, zip(vars(self).values(), vars(other).values(), strict=True)))

    def first(self, count: int) -> "Pieces":
        """The first `count` of them."""
        return Pieces(*(tensor[:count] for tensor in vars(self).values()))

    def batches(self, batch_tokens: int) -> list[Batch]:
        """All pieces in order, about `batch_tokens` tokens at a time, at least one piece."""
        size = max(1, batch_tokens // self.tokens.shape[1])
        pairs = zip(self.tokens.split(size), self.mask.split(size), strict=True)
        return [Batch(*pair) for pair in pairs]


def shuffled(count: int, size: int, seed: int) -> Sequence[Tensor]:
    """The indices below `count` in the order that `seed` gives, `size` at a time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size)


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


def prepare(
    texts: Iterable[Text], tokenizer: Tokenizer, data: Data
) -> tuple[dict[str, list[Piece]], dict[str, list[Piece]], dict[str, dict[str, int]]]:
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
    return kept["samples"], kept["documents"], {s: dict(c) for s, c in read.items()}


def train_val_sizes(total: int) -> tuple[int, int]:
    """Nine parts train and one part val, as the seed split; at least one val."""
    val = max(1, round(total / 10))
    return total - val, val


def write(pieces: dict[str, list[Piece]], folder: Path) -> None:
    """One Parquet file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in pieces.items():
        pd.DataFrame(rows, columns=Piece._fields).to_parquet(folder / f"{split}.parquet")
