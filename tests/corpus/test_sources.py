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
    (tmp_path / "a.jsonl").write_text('{"body": "no text here"}')
    with pytest.raises(InputError, match="has a row without `text`"):
        list(read_texts(str(tmp_path)))
