"""Prepared pieces of one length, short samples and long documents, as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.errors import InputError
from infini.files import read_table


class PieceBatch(NamedTuple):
    """Some pieces, padded to one length."""

    tokens: Tensor  # (B, T), zero on padding
    mask: Tensor  # (B, T), bool, True on real tokens


@dataclass
class Pieces:
    """All pieces of a split, padded to one length."""

    tokens: Tensor  # (n, T), zero on padding
    mask: Tensor  # (n, T), bool, True on real tokens
    bytes: Tensor  # (n,), UTF-8 bytes of all tokens but the first
    texts: Tensor  # (n,), index of the text that each piece is from

    @classmethod
    def load(cls, file: str | Path, limit: int | None = None, width: int = 0) -> "Pieces":
        """Read a file that stage prepare_data wrote.

        Args:
            file: path of the Parquet file.
            limit: read only the first pieces, so many; None: all.
            width: pad to so many tokens; 0: to the longest piece.

        Raises:
            InputError: the file is missing, damaged, or has fewer pieces or longer ones.
        """
        file = Path(file)
        if not file.is_file():
            raise InputError(f"{file}: not found; run stage prepare_data first")
        table = read_table(file, "text_id", "tokens", "bytes")
        if limit is not None and limit > len(table):
            raise InputError(f"{file}: must have ≥ {limit} pieces, got {len(table)}")
        table = table[:limit]
        if not all(isinstance(row, np.ndarray) and row.ndim == 1 for row in table["tokens"]):
            raise InputError(f"{file}: tokens and bytes must be integers")
        if not all(isinstance(name, str) for name in table["text_id"]):
            raise InputError(f"{file}: text_id must be text; run stage prepare_data again")
        columns = [np.asarray(column) for column in (*table["tokens"], table["bytes"])]
        if any(column.dtype.kind not in "iu" for column in columns):
            raise InputError(f"{file}: tokens and bytes must be integers")
        *rows, sizes = (torch.tensor(column, dtype=torch.int64) for column in columns)
        _check(file, rows, sizes, width)
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = F.pad(tokens, (0, max(0, width - tokens.shape[1])))
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        texts, _ = pd.factorize(table["text_id"])
        return cls(tokens, mask, sizes, torch.tensor(texts))

    def within(self, vocabulary: int) -> "Pieces":
        """Return these pieces; raise InputError if a token is not below `vocabulary`."""
        if (largest := int(self.tokens.max())) >= vocabulary:
            raise InputError(
                f"data/prepared: tokens must be < {vocabulary}, the base's vocabulary, "
                f"got {largest}: run stage prepare_data again"
            )
        return self

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: "Pieces") -> "Pieces":
        """Return both, one after the other, as pieces of different texts; their widths agree."""
        other = replace(other, texts=other.texts + self.texts.max() + 1)
        return Pieces(*map(torch.cat, zip(vars(self).values(), vars(other).values(), strict=True)))

    def first(self, count: int | None) -> "Pieces":
        """Return the first `count` pieces; None: all."""
        return Pieces(*(tensor[:count] for tensor in vars(self).values()))

    def at(self, index: int) -> "Pieces":
        """Return one piece."""
        return Pieces(*(tensor[index : index + 1] for tensor in vars(self).values()))

    def shortened(self, tokens: int) -> "Pieces":
        """Return the first tokens of every piece; `bytes` stay those of the whole."""
        return replace(self, tokens=self.tokens[:, :tokens], mask=self.mask[:, :tokens])

    def unpadded(self) -> list[Tensor]:
        """Return the tokens of every piece, (T,), without padding."""
        return [row[real] for row, real in zip(self.tokens, self.mask, strict=True)]

    def batches(self, batch_tokens: int) -> list[PieceBatch]:
        """Return all pieces in order, about `batch_tokens` tokens a batch, at least one piece."""
        size = max(1, batch_tokens // self.tokens.shape[1])
        pairs = zip(self.tokens.split(size), self.mask.split(size), strict=True)
        return [PieceBatch(*pair) for pair in pairs]


def _check(file: Path, rows: list[Tensor], sizes: Tensor, width: int) -> None:
    """Raise InputError for pieces that stage prepare_data does not write."""
    if not rows:
        raise InputError(f"{file}: must have ≥ 1 piece, got 0; run stage prepare_data again")
    if min(map(len, rows)) < 2 or any(row.ndim != 1 for row in rows):
        raise InputError(f"{file}: pieces must have ≥ 2 tokens; run stage prepare_data again")
    if width and max(map(len, rows)) > width:
        raise InputError(f"{file}: pieces must have ≤ {width} tokens; run stage prepare_data again")
    if min(int(row.min()) for row in rows) < 0 or int(sizes.min()) < 0:
        raise InputError(f"{file}: tokens and bytes must be ≥ 0; run stage prepare_data again")


def shuffled(count: int, size: int, seed: int) -> Sequence[Tensor]:
    """Return the indices below `count` in an order drawn by `seed`, `size` at a time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size)


def train_val_sizes(total: int) -> tuple[int, int]:
    """Split a number of pieces into nine parts train and one part val, at least one val."""
    val = max(1, round(total / 10))
    return total - val, val
