"""DVC itself on a toy project: what it runs again, and what it never hands to a shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from toy import read_params, write_params


@pytest.fixture
def repository(project: Path) -> Path:
    """The project with this package's code, under Git and DVC."""
    for name in ("infini", "stages"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, name)
    shutil.copytree(ROOT / "data/base", "data/base")  # a dep, whatever the base is
    shell("git", "init", "-q")
    shell(sys.executable, "-m", "dvc", "init", "-q")
    return project


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def repro(*targets: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *targets],
        env=os.environ | {"PATH": path, "PYTHONPATH": "."}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_text_changed_in_place_is_prepared_again(repository: Path) -> None:
    assert repro("prepare_data").returncode == 0
    assert "'prepare_data' didn't change" in repro("prepare_data").stdout
    before = Path("data/prepared/documents/train.parquet").read_bytes()
    for file in Path("text").iterdir():
        file.write_text(file.read_text()[::-1])
    assert "Running stage 'prepare_data'" in repro("prepare_data").stdout
    assert Path("data/prepared/documents/train.parquet").read_bytes() != before


def test_a_version_that_is_a_command_is_refused_before_a_shell_sees_it(repository: Path) -> None:
    content = read_params()
    content["adapters"]["$(touch${IFS}seen)"] = content["adapters"]["v3"]
    write_params(content)
    done = repro()
    assert done.returncode != 0
    assert "params.yaml: adapters.$(touch${IFS}seen)" in done.stderr
    assert not Path("seen").exists()
