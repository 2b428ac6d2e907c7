"""Assignment of documents to splits."""

import pytest

from infini.corpus.config import Shares
from infini.corpus.sources import read_texts
from infini.corpus.splits import SPLITS, split_of

SHARES = Shares(base=0.4, train=0.3, val=0.1, test=0.2)


def test_split_of_embedded_corpus_meets_shares() -> None:
    texts = list(read_texts("sotu"))
    splits = [split_of(t.id, SHARES) for t in texts]
    for split in SPLITS:
        share = splits.count(split) / len(texts)
        assert share == pytest.approx(getattr(SHARES, split), abs=0.1)


def test_split_of_is_stable_when_shares_change() -> None:
    ids = [str(i) for i in range(2000)]
    splits = [split_of(name, SHARES) for name in ids]
    for split in SPLITS:
        assert splits.count(split) / 2000 == pytest.approx(getattr(SHARES, split), abs=0.03)
    # A split that grows at the cost of the next takes its documents, and no other moves.
    more = Shares(base=0.6, train=0.1, val=0.1, test=0.2)
    pairs = zip(splits, (split_of(name, more) for name in ids), strict=True)
    assert {pair for pair in pairs if len(set(pair)) == 2} == {("train", "base")}


def test_split_of_one_split_alone() -> None:
    for split in SPLITS:
        shares = Shares.model_construct(**(dict.fromkeys(SPLITS, 0.0) | {split: 1.0}))
        assert {split_of(str(i), shares) for i in range(50)} == {split}
