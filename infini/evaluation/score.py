"""Losses of pieces of text under one protocol, token by token."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from infini import processes


@dataclass
class Score:
    """Losses of pieces of text, each at the position that predicts."""

    nats: Tensor  # (n, T) float32, zero where nothing is scored
    scored: Tensor  # (n, T) bool
    bytes: Tensor  # of a piece's scored tokens: (n,)
    texts: Tensor  # which text a piece is from: (n,)

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return int(self.scored.sum())

    @property
    def total(self) -> float:
        """Nats of all of them."""
        return self.nats.double().sum().item()

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats a token)."""
        return math.exp(self.mean)

    @property
    def bits_per_byte(self) -> float:
        """Comparable across vocabularies."""
        return self.total / math.log(2) / int(self.bytes.sum())

    def of_all_processes(self) -> "Score":
        """Every process's own rows put together: the others' are zero."""
        nats, scored = (
            processes.total(x.to(processes.device())).cpu() for x in (self.nats, self.scored.long())
        )
        return Score(nats, scored.bool(), self.bytes, self.texts)

    def table(self, segment_length: int) -> pd.DataFrame:
        """Long: piece, text, bytes (of the piece), segment, distance, tokens, nats.

        segment: index of the segment that predicts. distance: tokens since the document's
        start, its own included, in powers of two (1, 2, 4, … as lower ends).
        """
        piece, place = torch.where(self.scored)
        distance = 2 ** torch.log2(place + 1.0).floor().long()
        rows = pd.DataFrame(
            {
                "piece": piece,
                "text": self.texts[piece],
                "bytes": self.bytes[piece],
                "segment": place // segment_length,
                "distance": distance,
                "tokens": 1,
                "nats": self.nats[self.scored].double(),
            }
        )
        keys = ["piece", "text", "bytes", "segment", "distance"]
        return rows.groupby(keys, as_index=False).sum()
