"""Texts of embedded corpora and folders; errors of what is no corpus or no text."""

from pathlib import Path

import pandas as pd
import pytest

from infini.corpus.config import Shares
from infini.corpus.sources import base_texts, content_id, read_texts
from infini.corpus.splits import Text, split_of
from infini.errors import InputError


def test_read_texts_sotu_has_unique_ids() -> None:
    texts = list(read_texts("sotu"))
    assert len({text.id for text in texts}) == len(texts) > 200
    assert all(text.text.strip() for text in texts)


def test_read_texts_txt_equals_jsonl(tmp_path: Path) -> None:
    texts = ["One.\nTwo lines.", "Another — with “signs”."]
    (tmp_path / "txt").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "txt" / f"{i}.txt").write_text(text)
    (tmp_path / "json").mkdir()
    pd.DataFrame({"text": texts}).to_json(tmp_path / "json/a.jsonl", orient="records", lines=True)
    expected = [Text(content_id(t), t) for t in texts]
    assert list(read_texts(str(tmp_path / "txt"))) == expected
    assert list(read_texts(str(tmp_path / "json"))) == expected


def test_read_texts_uses_row_ids_and_drops_empty_texts(tmp_path: Path) -> None:
    rows = '{"id": 7, "text": "One."}\n{"id": 8, "text": " \\n"}\n{"id": null, "text": "Two."}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    assert list(read_texts(str(tmp_path))) == [Text("7", "One."), Text(content_id("Two."), "Two.")]


def test_content_id_of_equal_texts() -> None:
    assert content_id("a") == content_id("a") != content_id("b")


def test_read_texts_drops_copies(tmp_path: Path) -> None:
    rows = [
        '{"id": 1, "text": "Caf\u00e9 one.\\nTwo."}',
        '{"id": 2, "text": "Cafe\u0301 one.\\r\\n Two. "}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"id": 3, "text": "Cafe one. Two."}']))
    (tmp_path / "b.TXT").write_text("Caf\u00e9 one. Two.\n\n")
    (tmp_path / "c.txt").write_text("Three.")
    assert [text.id for text in read_texts(str(tmp_path))] == ["1", "3", content_id("Three.")]


def test_base_texts_are_split_base_of_sotu_or_the_whole_corpus(tmp_path: Path) -> None:
    shares = Shares(base=0.4, train=0.3, val=0.1, test=0.2)
    texts = list(read_texts("sotu"))
    own = base_texts("sotu", shares)
    assert own == [text for text in texts if split_of(text.id, shares) == "base"]
    assert 0 < len(own) < len(texts)
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}.")
    assert len(base_texts(str(tmp_path), shares)) == 20


def test_read_texts_names_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.corpus: folder .* has no .txt or .jsonl file"):
        list(read_texts(str(tmp_path)))
    with pytest.raises(InputError, match=r"data.corpus: 'no/such-corpus' is no embedded corpus"):
        list(read_texts("no/such-corpus"))
    with pytest.raises(InputError, match=r"a folder of .txt or .jsonl files, or a hub dataset"):
        list(read_texts("./no/such-corpus"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Voilà\nun café".encode("latin-1"), r"a.txt: line 1: not UTF-8 \(byte 0xe0\)"),
        ("a.txt", b"One.\nTwo \xff.", r"a.txt: line 2: not UTF-8 \(byte 0xff\); save it as UTF-8"),
        ("a.txt", "Text".encode("utf-16"), r"a.txt: line 1: not UTF-8 \(byte 0xff\)"),
        ("a.txt", "Text".encode("utf-16-le"), "a.txt: line 1: NUL characters, UTF-16"),
        ("a.jsonl", b'{"text": "One."}\n{"text": "Tw', "a.jsonl: line 2: not JSON: Unterminated"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl: line 1: not UTF-8"),
        (
            "a.jsonl",
            b'\n\n{"body": "One."}',
            "a.jsonl: line 3: must be an object with a string `text`",
        ),
        ("a.jsonl", b'{"text": 3}', "a.jsonl: line 1: must be an object with a string `text`"),
        ("a.jsonl", b'["text"]', "a.jsonl: line 1: must be an object with a string `text`"),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "a.jsonl: line 1: text has NUL characters"),
        ("a.jsonl", b"text", "a.jsonl: line 1: not JSON: Expecting value"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: line 1: not JSON: "),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl: line 1: text has half a surrogate pair"),
    ],
)
def test_read_texts_names_file_and_line_of_invalid_text(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(read_texts(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_read_texts_leaves_out_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text/.hidden").mkdir(parents=True)
    (tmp_path / "text/a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.")
    (tmp_path / "text/b.jsonl").write_text('{"text": "Three."}\n\n')
    (tmp_path / "text/c.md").write_text("No.")
    (tmp_path / "text/.hidden/d.txt").write_text("No.")
    expected = ["One.\nTwo.", "Three."]
    assert [text.text for text in read_texts(str(tmp_path / "text"))] == expected
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./text", "~/text", "text"):
        assert [text.text for text in read_texts(name)] == expected
