"""Hashes of input folders, and which files a corpus has."""

import hashlib
import os
from pathlib import Path

import pytest

from infini.corpus.inputs import file_hashes, text_files
from infini.errors import InputError


def test_file_hashes_leaves_out_hidden_files(tmp_path: Path) -> None:
    own = ["c.txt", "b.txt", "deep/er/a.txt", "d.txt", "a.txt"]
    for name in (*own, ".hidden", ".git/config", "deep/.cache/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in own}
    found = file_hashes(str(tmp_path))
    assert found == expected
    assert list(found) == sorted(own)  # whatever the file system's order is
    (tmp_path / "b.txt").write_text("other")
    assert file_hashes(str(tmp_path))["b.txt"] != expected["b.txt"]


def test_file_hashes_of_no_folder_are_empty() -> None:
    assert file_hashes("sotu") == {}


def test_text_files_rejects_names_of_local_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json", "text", "imagefolder"):
        with pytest.raises(InputError, match=rf"a hub dataset \(owner/name\), got '{name}'"):
            text_files(name)


def test_file_hashes_do_not_trust_time_and_size(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, (4e9, 4e9))
    before = file_hashes(str(tmp_path))
    file.write_text("two")
    os.utime(file, (4e9, 4e9))
    assert file_hashes(str(tmp_path)) != before
