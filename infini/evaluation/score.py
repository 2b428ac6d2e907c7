"""Losses of every token under one protocol."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from infini import processes


@dataclass
class Score:
    """Losses of pieces of text, each at the position that predicts the token."""

    nats: Tensor  # (n, T) float32, zero where nothing is scored
    scored: Tensor  # (n, T) bool
    bytes: Tensor  # (n,), of each piece's scored tokens
    texts: Tensor  # (n,), index of the text that a piece is from

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.sum())

    @property
    def total(self) -> float:
        """Sum of losses in nats."""
        return self.nats.double().sum().item()

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the nats per token."""
        return math.exp(self.mean)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, comparable across vocabularies."""
        return self.total / math.log(2) / int(self.bytes.sum())

    def of_all_processes(self) -> "Score":
        """Sum the rows of all processes; each has zeros in the others' rows."""
        nats, scored = (
            processes.all_reduce(x.to(processes.device())).cpu()
            for x in (self.nats, self.scored.long())
        )
        return Score(nats, scored.bool(), self.bytes, self.texts)

    def table(self, segment_length: int) -> pd.DataFrame:
        """Sum losses by piece, segment and distance.

        Args:
            segment_length: Tokens per segment.

        Returns:
            Columns piece, text, bytes (of the piece), segment (of the predicting position),
            distance (tokens since the document's start, the predicting one included: lower end of
            a power of two), tokens, nats.
        """
        piece, position = torch.where(self.scored)
        distance = 2 ** torch.log2(position + 1.0).floor().long()
        rows = pd.DataFrame(
            {
                "piece": piece,
                "text": self.texts[piece],
                "bytes": self.bytes[piece],
                "segment": position // segment_length,
                "distance": distance,
                "tokens": 1,
                "nats": self.nats[self.scored].double(),
            }
        )
        keys = ["piece", "text", "bytes", "segment", "distance"]
        return rows.groupby(keys, as_index=False).sum()
