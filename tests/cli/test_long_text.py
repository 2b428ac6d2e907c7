"""Tokens of a file read piece by piece equal those of the whole text."""

import io
import logging
import sys
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from infini.cli import long_text
from infini.cli.long_text import read_tokens, token_ids
from infini.errors import InputError
from infini.model.base import load_tokenizer
from toy import sentence

TEXT = "\n\n".join(
    f"{sentence(9, seed)}.  It's 1,9{seed} — “état”  of\tthe\n union. ☃☃ a b" for seed in range(9)
)


def metaspace() -> PreTrainedTokenizerBase:
    """Return a tokenizer like SentencePiece's: a mark before every word and every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(params=["bytes", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, base_folder: Path) -> PreTrainedTokenizerBase:
    return metaspace() if request.param == "metaspace" else load_tokenizer(str(base_folder))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    return tmp_path / "text.txt"


@pytest.mark.parametrize("size", [40, 41, 97, 10_000])
def test_read_tokens_equals_tokens_of_whole_text(
    file: Path, tokenizer: PreTrainedTokenizerBase, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", size)
    pieces = list(read_tokens(file, tokenizer))
    assert len(pieces) > 5 or size == 10_000
    assert list(chain.from_iterable(pieces)) == token_ids(tokenizer, TEXT)


def test_pieces_are_short(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", 100)
    pieces = list(long_text._pieces(file))
    assert "".join(pieces) == TEXT
    assert max(map(len, pieces)) <= 150
    assert all(piece[0] == " " != piece[1] for piece in pieces[1:])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        (" a", " a"),
        ("界" * 50, "界" * 50),  # no gap to cut at
        ("one\r\ntwo\rthree\n\r\n", "one\ntwo\nthree\n\n"),
        ("\ufeffone two", "one two"),
    ],
)
def test_pieces_lose_no_character(
    content: str, text: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", size)
    (tmp_path / "x").write_bytes(content.encode())
    assert "".join(long_text._pieces(tmp_path / "x")) == text


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"one tw\xf6 three", r"x: not UTF-8 \(byte 0xf6 at 6\); save it"),
        (b"one two \xe2\x98", r"x: not UTF-8 \(byte 0xe2 at 8\)"),
        ("one".encode("utf-16"), r"x: not UTF-8 \(byte 0xff at 0\)"),
        ("one".encode("utf-16-le"), "x: NUL characters, UTF-16"),
    ],
)
@pytest.mark.parametrize("size", [4, 1000])
def test_read_tokens_names_invalid_byte(
    content: bytes, shown: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", size)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=shown):
        list(long_text._pieces(tmp_path / "x"))
    with pytest.raises(InputError, match="nothing: not readable: No such file"):
        list(long_text._pieces(tmp_path / "nothing"))


def test_read_tokens_logs_title_without_terminal(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    list(long_text._pieces(file))
    assert caplog.messages == ["reading text.txt …"]
