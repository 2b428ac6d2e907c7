"""A checkpoint is found again by what decides the result, the package's code included."""

import shutil
from pathlib import Path

import pytest

import infini
from infini.training import checkpoint
from infini.training.checkpoint import fingerprint

PACKAGE = Path(infini.__file__).parent


def test_the_key_follows_settings_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a")
    first = fingerprint({"lr": 1.0}, [tmp_path / "in"])
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) == first
    assert fingerprint({"lr": 2.0}, [tmp_path / "in"]) != first
    (tmp_path / "in").write_text("b")
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) != first


@pytest.mark.parametrize("changed", ["memory/kernel.py", "model/segments.py", "training/loop.py"])
def test_the_key_follows_the_code_of_every_folder(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "infini", ignore=ignored)
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "infini/training/checkpoint.py"))
    before = fingerprint({}, [])
    with (tmp_path / "infini" / changed).open("a") as file:
        file.write("# another line\n")
    assert fingerprint({}, []) != before
