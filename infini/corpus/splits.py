"""Texts, and the four splits that a hash of their id assigns them to."""

import hashlib
from typing import NamedTuple

from infini.corpus.config import Shares

SPLITS = ("base", "train", "val", "test")


class Text(NamedTuple):
    """One text of a corpus."""

    id: str
    text: str


def split_of(text_id: str, shares: Shares) -> str:
    """Return the split of a text: a hash of its id in [0, 1) against the cumulated shares."""
    point = int.from_bytes(hashlib.sha256(text_id.encode()).digest()[:8], "big") / 2**64
    total = 0.0
    for split in SPLITS:
        total += getattr(shares, split)
        if point < total:
            return split
    return SPLITS[-1]
