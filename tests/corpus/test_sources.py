"""Where text comes from: embedded corpora, folders, and what is not there."""

from pathlib import Path

import pandas as pd
import pytest

from infini.corpus.config import Shares
from infini.corpus.sources import base_texts, content_id, read_texts
from infini.corpus.splits import Text, split_of
from infini.errors import InputError


def test_the_embedded_corpus_has_many_documents_of_their_own_names() -> None:
    texts = list(read_texts("sotu"))
    assert len({text.id for text in texts}) == len(texts) > 200
    assert all(text.text.strip() for text in texts)


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


def test_a_rows_own_id_counts_and_empty_text_does_not(tmp_path: Path) -> None:
    rows = '{"id": 7, "text": "One."}\n{"id": 8, "text": " \\n"}\n{"id": null, "text": "Two."}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    assert list(read_texts(str(tmp_path))) == [Text("7", "One."), Text(content_id("Two."), "Two.")]


def test_equal_texts_have_equal_ids() -> None:
    assert content_id("a") == content_id("a") != content_id("b")


def test_a_copy_is_left_out_whatever_its_id_and_its_white_space(tmp_path: Path) -> None:
    rows = [
        '{"id": 1, "text": "Caf\u00e9 one.\\nTwo."}',
        '{"id": 2, "text": "Cafe\u0301 one.\\r\\n Two. "}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"id": 3, "text": "Cafe one. Two."}']))
    (tmp_path / "b.TXT").write_text("Caf\u00e9 one. Two.\n\n")
    (tmp_path / "c.txt").write_text("Three.")
    assert [text.id for text in read_texts(str(tmp_path))] == ["1", "3", content_id("Three.")]


def test_a_base_is_trained_on_its_split_of_sotu_and_on_other_text_whole(tmp_path: Path) -> None:
    shares = Shares(base=0.4, train=0.3, val=0.1, test=0.2)
    texts = list(read_texts("sotu"))
    own = base_texts("sotu", shares)
    assert own == [text for text in texts if split_of(text.id, shares) == "base"]
    assert 0 < len(own) < len(texts)
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}.")
    assert len(base_texts(str(tmp_path), shares)) == 20


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.corpus: no .txt or .jsonl file in folder"):
        list(read_texts(str(tmp_path)))
    with pytest.raises(InputError, match=r"data.corpus: 'no/such-corpus' is no embedded corpus"):
        list(read_texts("no/such-corpus"))
    with pytest.raises(InputError, match=r"a folder of .txt or .jsonl files or a hub dataset"):
        list(read_texts("./no/such-corpus"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Voilà\nun café".encode("latin-1"), r"a.txt: line 1: not UTF-8 \(byte 0xe0\)"),
        ("a.txt", b"One.\nTwo \xff.", r"a.txt: line 2: not UTF-8 \(byte 0xff\): save it as UTF-8"),
        ("a.txt", "Text".encode("utf-16"), r"a.txt: line 1: not UTF-8 \(byte 0xff\)"),
        ("a.txt", "Text".encode("utf-16-le"), "a.txt: line 1: NUL characters: no text, or UTF-16"),
        ("a.jsonl", b'{"text": "One."}\n{"text": "Tw', "a.jsonl: line 2: not JSON: Unterminated"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl: line 1: not UTF-8"),
        ("a.jsonl", b'\n\n{"body": "One."}', "a.jsonl: line 3: an object with a string `text` is"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl: line 1: an object with a string `text` is needed"),
        ("a.jsonl", b'["text"]', "a.jsonl: line 1: an object with a string `text` is needed"),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "a.jsonl: line 1: NUL characters: no text"),
        ("a.jsonl", b"text", "a.jsonl: line 1: not JSON: Expecting value"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: line 1: not JSON: "),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl: line 1: half a surrogate pair"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(read_texts(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_all_of_a_folder_is_read_but_for_what_is_hidden(
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
