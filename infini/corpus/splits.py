"""Documents, and the four splits that they are dealt out to."""

import hashlib
from typing import NamedTuple

from infini.corpus.config import Shares

SPLITS = ("base", "train", "val", "test")


class Text(NamedTuple):
    """One document of a corpus."""

    id: str
    text: str


def split_of(text_id: str, shares: Shares) -> str:
    """The split of a document: a hash of its id against the cumulated shares."""
    point = int.from_bytes(hashlib.sha256(text_id.encode()).digest()[:8], "big") / 2**64
    total = 0.0
    for split in SPLITS:
        total += getattr(shares, split)
        if point < total:
            return split
    return SPLITS[-1]
