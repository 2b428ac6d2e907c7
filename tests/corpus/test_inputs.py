"""What a run is given from outside, by its content."""

import hashlib
import os
from pathlib import Path

import pytest
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from infini.corpus.inputs import READERS, contents, text_files
from infini.errors import InputError


def test_every_file_of_a_folder_has_its_hash_and_hidden_ones_have_none(tmp_path: Path) -> None:
    own = ["c.txt", "b.txt", "deep/er/a.txt", "d.txt", "a.txt"]
    for name in (*own, ".hidden", ".git/config", "deep/.cache/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in own}
    found = contents(str(tmp_path))
    assert found == expected
    assert list(found) == sorted(own)  # whatever the file system's order is
    (tmp_path / "b.txt").write_text("other")
    assert contents(str(tmp_path))["b.txt"] != expected["b.txt"]


def test_what_is_no_folder_has_no_contents() -> None:
    assert contents("sotu") == {}


def test_a_reader_of_local_files_is_no_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(_PACKAGED_DATASETS_MODULES) <= set(READERS)
    monkeypatch.chdir(tmp_path)
    for name in READERS:
        with pytest.raises(InputError, match=f"a hub dataset's name is needed, got '{name}'"):
            text_files(name)


def test_a_change_is_seen_whatever_the_clock_and_the_size_say(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, (4e9, 4e9))
    before = contents(str(tmp_path))
    file.write_text("two")
    os.utime(file, (4e9, 4e9))
    assert contents(str(tmp_path)) != before
