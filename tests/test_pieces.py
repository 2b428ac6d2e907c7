"""Corpora and pieces: splits by document, pieces within one text, honest byte counts."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from infini import params
from infini.corpus import content_id, read_texts
from infini.errors import InputError
from infini.params import Shares
from infini.pieces import Pieces, cut, encode, prepare, shuffled
from infini.splits import SPLITS, Text, split_of
from toy import sentence

SHARES = Shares(base=0.4, train=0.3, val=0.1, test=0.2)


def test_the_embedded_corpus_is_dealt_out_by_document() -> None:
    texts = list(read_texts("sotu"))
    assert len({t.id for t in texts}) == len(texts) > 200
    splits = [split_of(t.id, SHARES) for t in texts]
    for split in SPLITS:
        share = splits.count(split) / len(texts)
        assert share == pytest.approx(getattr(SHARES, split), abs=0.1)


def test_text_and_jsonl_folders_read_the_same(tmp_path: Path) -> None:
    texts = ["One.\nTwo lines.", "Another — with “signs”."]
    (tmp_path / "txt").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "txt" / f"{i}.txt").write_text(text)
    (tmp_path / "json").mkdir()
    pd.DataFrame({"text": texts}).to_json(tmp_path / "json/a.jsonl", orient="records", lines=True)
    expected = [Text(content_id(t), t) for t in texts]
    assert list(read_texts(str(tmp_path / "txt"))) == expected
    assert list(read_texts(str(tmp_path / "json"))) == expected


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.corpus: no .txt or .jsonl file in folder"):
        list(read_texts(str(tmp_path)))
    with pytest.raises(InputError, match=r"data.corpus: 'no/such-corpus' is no embedded corpus"):
        list(read_texts("no/such-corpus"))
    (tmp_path / "a.jsonl").write_text('{"body": "no text here"}')
    with pytest.raises(InputError, match="has a row without `text`"):
        list(read_texts(str(tmp_path)))


def test_pieces_stay_within_a_text_and_count_their_bytes(base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    text = Text("a", sentence(60, 0) + " by the way " + sentence(20, 1))
    ids = tokenizer(text.text)["input_ids"]
    pieces = cut(encode(text, tokenizer), 16, 8)
    assert [piece.start for piece in pieces] == list(range(0, len(ids) - 8 + 1, 16))
    for piece in pieces:
        assert piece.tokens == ids[piece.start : piece.start + len(piece.tokens)]
        assert 8 <= len(piece.tokens) <= 16
        # The bytes are those of all tokens but the first.
        ends = [tokenizer.decode(part).encode() for part in (piece.tokens, piece.tokens[:1])]
        assert piece.bytes == len(ends[0]) - len(ends[1])


def test_quotas_and_reading_no_more_than_needed(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    (data,) = params.read("data")
    read = []

    def texts() -> Iterator[Text]:
        for i in range(10_000):
            read.append(i)
            yield Text(str(i), sentence(80, i))

    samples, documents, counts = prepare(texts(), tokenizer, data)
    assert {s: len(p) for s, p in samples.items()} == {"train": 11, "val": 1, "test": 6}
    assert {s: len(p) for s, p in documents.items()} == {"train": 5, "val": 1, "test": 2}
    assert len(read) < 100  # streamed: it stops when the quotas are full
    assert sum(c.get("texts", 0) for c in counts.values()) == len(read)
    owners = {split: {p.text_id for p in pieces} for split, pieces in samples.items()}
    assert not owners["train"] & owners["test"]
    assert all(len(p.tokens) == 64 for pieces in documents.values() for p in pieces)

    with pytest.raises(InputError, match=r"lower data.samples or data.test.samples"):
        prepare([Text("1", "short")], tokenizer, data)


def test_an_epoch_has_every_index_once_in_the_order_of_its_seed() -> None:
    batches = shuffled(7, 3, seed=1)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(7))
    assert torch.cat(list(batches)).equal(torch.cat(list(shuffled(7, 7, seed=1))))
    assert not torch.cat(list(batches)).equal(torch.cat(list(shuffled(7, 7, seed=2))))


def test_loading_pads_and_masks(tmp_path: Path) -> None:
    table = pd.DataFrame({"text_id": ["b", "a"], "tokens": [[1, 2, 3], [4, 5]], "bytes": [9, 7]})
    table.to_parquet(tmp_path / "a.parquet")
    pieces = Pieces.load(tmp_path / "a.parquet", width=4)
    assert pieces.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
    assert pieces.mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert (pieces + pieces).texts.tolist() == [0, 1, 2, 3]  # other texts, by definition
    assert pieces.first(1).bytes.tolist() == [9]
    with pytest.raises(InputError, match="5 pieces asked for, it has 2"):
        Pieces.load(tmp_path / "a.parquet", 5)
