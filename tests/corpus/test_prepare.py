"""Texts cut into pieces: byte counts, quotas by split, reading no more than needed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from infini import params
from infini.corpus.config import Data
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import (
    Piece,
    Prepared,
    RoundRobin,
    cut_text,
    encode_text,
    prepare,
    prepared_record,
    write_pieces,
)
from infini.corpus.splits import Text, split_of
from infini.errors import InputError
from toy import read_params, sentence, stage, write_params


@pytest.mark.parametrize("words", [60, 61, 62, 63, 64])
def test_cut_text_counts_bytes(base_folder: Path, words: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    text = Text("a", sentence(words, 0) + " by the way — “” " + sentence(20, 1))
    ids = tokenizer(text.text)["input_ids"]
    pieces = cut_text(encode_text(text, tokenizer, 10_000), 16, 8)
    assert [piece.start for piece in pieces] == list(range(0, len(ids) - 8 + 1, 16))
    for piece in pieces:
        assert piece.tokens == ids[piece.start : piece.start + len(piece.tokens)]
        assert 8 <= len(piece.tokens) <= 16
    # The bytes are those of all tokens but the first.
    whole = [piece for piece in pieces if "�" not in tokenizer.decode(piece.tokens)]
    assert len(whole) >= len(pieces) - 2
    for piece in whole:
        ends = [tokenizer.decode(part).encode() for part in (piece.tokens, piece.tokens[:1])]
        assert piece.bytes == len(ends[0]) - len(ends[1])


def test_pieces_begin_as_the_tokenizer_begins_a_text(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    text = Text("a", sentence(80, 0))
    plain = cut_text(encode_text(text, tokenizer, 10_000), 15, 8)
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, 7)]
    )
    assert tokenizer("a")["input_ids"][0] == 7
    pieces = cut_text(encode_text(text, tokenizer, 10_000), 16, 9)
    assert [piece.start for piece in pieces] == [piece.start for piece in plain]
    for piece, other in zip(pieces, plain, strict=True):
        assert piece.tokens == [7, *other.tokens]
        assert piece.bytes == len(tokenizer.decode(other.tokens).encode()), "the first is scored"
    prepared = prepare((Text(str(i), sentence(80, i)) for i in range(99)), tokenizer, read_data())
    for split in (*prepared.samples.values(), *prepared.documents.values()):
        assert {piece.tokens[0] for piece in split} == {7}
    length = read_data().document_length
    assert {len(p.tokens) for own in prepared.documents.values() for p in own} == {length}


def read_data() -> Data:
    return params.get("data", Data)


def test_prepare_fills_quotas_and_stops_reading(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    data, read = read_data(), []

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
    for split in ("train", "val", "test"):
        own = [i for i in read if split_of(str(i), data.shares) == split]
        characters = sum(len(sentence(80, i)) for i in own)
        assert (counts[split]["texts"], counts[split]["characters"]) == (len(own), characters)

    with pytest.raises(
        InputError, match=r"lower data.samples, data.test.samples or data.test.skip"
    ):
        prepare([Text("1", "short")], tokenizer, data)


def test_prepare_takes_first_pieces_of_all_texts_first(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    data = params.get("data", Data)
    data = data.model_copy(update={"samples": 30})  # more than the texts that training has
    texts = [Text(str(i), sentence(80, i)) for i in range(24)]
    samples = prepare(texts, tokenizer, data).samples["train"]
    own = [text.id for text in texts if split_of(text.id, data.shares) == "train"]
    assert len(own) < len(samples) == 27
    assert [piece.text_id for piece in samples[: len(own)]] == own
    assert {piece.start for piece in samples[: len(own)]} == {0}
    assert [piece.start for piece in samples[len(own) :]] == [16] * (27 - len(own))


def test_prepare_skips_test_documents(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    data = params.get("data", Data)
    texts = [Text(str(i), sentence(10 if i % 2 else 80, i)) for i in range(60)]  # short ones too
    whole = prepare(texts, tokenizer, data)
    unseen = data.model_copy(update={"test": data.test.model_copy(update={"skip": 2})})
    found = prepare(texts, tokenizer, unseen)
    seen = {piece.text_id for piece in whole.documents["test"]}
    assert len(seen) == 2
    for kind in (found.samples, found.documents):
        assert not seen & {piece.text_id for piece in kind["test"]}
    assert found.documents["train"] == whole.documents["train"]
    assert found.samples["val"] == whole.samples["val"]


def test_encode_text_reads_only_the_start_of_long_texts(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    whole = Text("a", sentence(4000, 0))
    everything = encode_text(whole, tokenizer, 10**6)
    assert everything.text is whole
    for enough in (1, 100, 333):
        part = encode_text(whole, tokenizer, enough)
        assert part.ids == everything.ids[:enough]
        assert part.offsets == everything.offsets[:enough]
        assert whole.text.startswith(part.text.text)
        assert len(part.text.text) == part.offsets[-1][1]
    data = params.get("data", Data)
    first = prepare([Text(str(i), sentence(80, i)) for i in range(24)], tokenizer, data)
    long = [Text(str(i), sentence(80, i) + " " + sentence(9000, i)) for i in range(24)]
    second = prepare(long, tokenizer, data)
    for split, pieces in first.documents.items():
        assert [p.tokens for p in pieces] == [p.tokens for p in second.documents[split]]


def test_round_robin_holds_at_most_wanted_pieces() -> None:
    rounds = RoundRobin(5)
    for name, count in (("a", 4), ("b", 1), ("c", 9), ("d", 2)):
        rounds.add([Piece(name, start, [start], 0) for start in range(count)])
        assert len(rounds.pieces()) <= 5
    assert [(p.text_id, p.start) for p in rounds.pieces()] == [
        ("a", 0), ("b", 0), ("c", 0), ("d", 0), ("a", 1),
    ]  # fmt: skip
    assert not rounds.full
    rounds.add([Piece("e", 0, [0], 0)])
    assert rounds.full


def test_prepare_counts_split_base_without_cutting(project: Path, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    data = params.get("data", Data)
    shares = data.shares.model_copy(update={"base": 0.4, "train": 0.2})
    texts = [Text(str(i), sentence(80, i)) for i in range(200)]
    prepared = prepare(texts, tokenizer, data.model_copy(update={"shares": shares}))
    own = [text.id for text in texts if split_of(text.id, shares) == "base"]
    for kind in (prepared.samples, prepared.documents):
        assert kind.keys() == {"train", "val", "test"}
        assert not {piece.text_id for pieces in kind.values() for piece in pieces} & set(own)
    assert 0 < prepared.counts["base"]["texts"] <= len(own)
    assert prepared.counts["base"]["tokens"] > 0


def test_write_pieces_round_trip(tmp_path: Path) -> None:
    pieces = [Piece("b", 0, [5, 6, 7], 9), Piece("a", 3, [8, 9], 4), Piece("b", 3, [1, 2, 3], 2)]
    write_pieces({"train": pieces, "test": pieces[:1]}, tmp_path / "samples")
    assert {file.name for file in (tmp_path / "samples").iterdir()} == {
        "train.parquet",
        "test.parquet",
    }
    read = Pieces.load(tmp_path / "samples/train.parquet")
    assert read.tokens.tolist() == [[5, 6, 7], [8, 9, 0], [1, 2, 3]]
    assert read.bytes.tolist() == [9, 4, 2]
    assert read.texts.tolist() == [0, 1, 0]
    assert len(Pieces.load(tmp_path / "samples/test.parquet")) == 1


def test_prepared_record_counts_padding_and_hashes_pieces() -> None:
    pieces = [Piece("a", 0, [1, 2, 3, 4], 9), Piece("b", 0, [5, 6], 4)]
    counts = {"train": {"texts": 2, "tokens": 6, "characters": 20}}
    prepared = Prepared({"train": pieces}, {"train": pieces[:1]}, counts)
    record = prepared_record(prepared, segment_length=4)
    expected = {"texts": 2, "tokens": 6, "characters": 20, "samples": 2, "documents": 1}
    assert record["splits"] == {"train": expected}
    assert record["padding_share"] == 0.25
    other = prepared._replace(documents={"train": pieces[1:]})
    assert prepared_record(other, segment_length=4)["sha256"] != record["sha256"]


def test_stage_warns_of_unused_split_base(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    content = read_params()
    content["data"] |= {"samples": 4, "documents": 2, "test": {"samples": 1, "documents": 1}}
    content["data"]["shares"] = {"base": 0.25, "train": 0.35, "val": 0.2, "test": 0.2}
    content["evaluate"] |= {"short": {"samples": 1}, "documents": 2}
    content["data"]["test"]["documents"] = 2
    for version in content["replacements"].values():
        version["finetune"]["documents"] = None
    for version in content["adapters"].values():
        version["control"] = False
    write_params(content)
    stage("prepare_data")
    assert "data.shares.base: 25 % of the corpus is used only to train a base" in (caplog.text)
