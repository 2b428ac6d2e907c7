"""What a run is given from outside, as far as it is on this machine: so that a change is seen."""

import hashlib
from pathlib import Path


def contents(name: str) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it; empty for what is no folder.

    Hidden files are nobody's input.
    """
    folder, found = Path(name), {}
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        path = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            with file.open("rb") as stream:
                found[str(path)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
