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
        """The first `limit` pieces of a prepared file, padded to `width` tokens or the longest.

        InputError for what stage prepare_data did not write.
        """
        file = Path(file)
        if not file.is_file():
            raise InputError(f"{file}: not found; run stage prepare_data first")
        table = read_table(file, "text_id", "tokens", "bytes")
        if limit is not None and limit > len(table):
            raise InputError(f"{file}: {limit} pieces asked for, it has {len(table)}")
        table = table[:limit]
        if not all(isinstance(row, np.ndarray) and row.ndim == 1 for row in table["tokens"]):
            raise InputError(f"{file}: tokens and bytes must be whole numbers")
        if not all(isinstance(name, str) for name in table["text_id"]):
            raise InputError(f"{file}: text_id must be text; run stage prepare_data again")
        columns = [np.asarray(column) for column in (*table["tokens"], table["bytes"])]
        if any(column.dtype.kind not in "iu" for column in columns):
            raise InputError(f"{file}: tokens and bytes must be whole numbers")
        *rows, sizes = (torch.tensor(column, dtype=torch.int64) for column in columns)
        _check(file, rows, sizes, width)
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = F.pad(tokens, (0, max(0, width - tokens.shape[1])))
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        texts, _ = pd.factorize(table["text_id"])
        return cls(tokens, mask, sizes, torch.tensor(texts))

    def within(self, vocabulary: int) -> "Pieces":
        """These; InputError where a token is none of a base's that has so many."""
        if (largest := int(self.tokens.max())) >= vocabulary:
            raise InputError(
                f"data/prepared: token {largest} is none of the base's, which has {vocabulary}: "
                "run stage prepare_data again, with its own tokenizer"
            )
        return self

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: "Pieces") -> "Pieces":
        """Both, of different texts, one after the other; the widths must agree."""
        other = replace(other, texts=other.texts + self.texts.max() + 1)
        return Pieces(*map(torch.cat, zip(vars(self).values(), vars(other).values(), strict=True)))

    def first(self, count: int) -> "Pieces":
        """The first `count` of them."""
        return Pieces(*(tensor[:count] for tensor in vars(self).values()))

    def shortened(self, tokens: int) -> "Pieces":
        """Their first so many tokens; `bytes` stay those of the whole."""
        return replace(self, tokens=self.tokens[:, :tokens], mask=self.mask[:, :tokens])

    def batches(self, batch_tokens: int) -> list[Batch]:
        """All pieces in order, about `batch_tokens` tokens at a time, at least one piece."""
        size = max(1, batch_tokens // self.tokens.shape[1])
        pairs = zip(self.tokens.split(size), self.mask.split(size), strict=True)
        return [Batch(*pair) for pair in pairs]


def _check(file: Path, rows: list[Tensor], sizes: Tensor, width: int) -> None:
    """InputError for pieces that cannot be."""
    if not rows:
        raise InputError(f"{file}: no piece in it; run stage prepare_data again")
    if min(map(len, rows)) < 2 or any(row.ndim != 1 for row in rows):
        raise InputError(f"{file}: a piece of fewer than two tokens, there is nothing to predict")
    if width and max(map(len, rows)) > width:
        raise InputError(f"{file}: a piece of more than {width} tokens; run stage prepare_data")
    if min(int(row.min()) for row in rows) < 0 or int(sizes.min()) < 0:
        raise InputError(f"{file}: a negative token or size; run stage prepare_data again")


def shuffled(count: int, size: int, seed: int) -> Sequence[Tensor]:
    """The indices below `count` in the order that `seed` gives, `size` at a time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size)


def train_val_sizes(total: int) -> tuple[int, int]:
    """Nine parts train and one part val, as the seed split; at least one val."""
    val = max(1, round(total / 10))
    return total - val, val
