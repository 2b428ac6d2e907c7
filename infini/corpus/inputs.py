"""What a run is given from outside, as far as it is on this machine: so that a change is seen."""

import hashlib
import os
import re
from pathlib import Path

from infini.errors import InputError

SUFFIXES = (".txt", ".jsonl")  # in upper case too
EMBEDDED = ("sotu", "kjv")
HUB_NAME = re.compile(r"\w[\w.-]{0,95}(/[\w.-]{1,96})?")
# names that 🤗 Datasets takes for its readers of local files: it would read what lies around
READERS = (
    "arrow", "audiofolder", "cache", "conll", "csv", "eval", "fasta", "fastq", "genbank",
    "generator", "harbor", "hdf5", "iceberg", "imagefolder", "json", "lance", "meshfolder",
    "mmcif", "niftifolder", "pandas", "parquet", "pdb", "pdffolder", "spark", "sql", "text",
    "tsfile", "videofolder", "vortex", "webdataset", "xml",
)  # fmt: skip


def contents(name: str) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it; empty for what is no folder.

    Hidden files are nobody's input.
    """
    folder, found = _folder(name), {}
    for path in _visible(folder) if os.path.isdir(folder) else []:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = digest
    return found


def text_files(corpus: str) -> list[Path] | None:
    """The `.txt` and `.jsonl` files of a folder, in order; None: an embedded corpus or a hub name.

    InputError where it is none of these.
    """
    folder = _folder(corpus)
    if corpus in EMBEDDED:
        return None
    if corpus and os.path.isdir(folder):
        if files := [file for file in _visible(folder) if file.suffix.lower() in SUFFIXES]:
            return files
        raise InputError(f"data.corpus: no .txt or .jsonl file in folder {corpus!r}")
    if os.path.exists(folder) or not HUB_NAME.fullmatch(corpus) or corpus in READERS:
        raise InputError(
            f"data.corpus: {', '.join(EMBEDDED)}, a folder of .txt or .jsonl files or a hub "
            f"dataset's name is needed, got {corpus!r:.80}"
        )
    return None


def _folder(name: str) -> Path:
    """Where a name would be, were it a folder's; os.path takes names that no file can have."""
    return Path(os.path.expanduser(name))


def _visible(folder: Path) -> list[Path]:
    """The files below a folder, but for hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
