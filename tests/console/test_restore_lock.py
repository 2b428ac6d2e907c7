"""dvc.lock after a run on another CPU."""

import subprocess
from pathlib import Path

import pytest

from infini.console.restore_lock import LOCK_FILE, restore_lock

LOCK = """\
stages:
  train:
    cmd: python -m stages.train
    deps:
    - path: infini/memory
      md5: aaaa.dir
    outs:
    - path: data/models/v5
      md5: bbbb.dir
      size: 7
    - path: reports/metrics/v5.json
      md5: cccc
"""


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Git repository with a lock and a report."""
    monkeypatch.chdir(tmp_path)
    LOCK_FILE.write_text(LOCK)
    Path("report.md").write_text("3.46")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *words], check=True)


@pytest.mark.usefixtures("committed")
def test_restore_lock_ignores_hashes_of_data() -> None:
    LOCK_FILE.write_text(LOCK.replace("bbbb", "dddd").replace("size: 7", "size: 8"))
    restore_lock()
    assert LOCK_FILE.read_text() == LOCK


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("hash_", ["aaaa", "cccc"], ids=["code", "figures"])
def test_restore_lock_keeps_other_hashes(hash_: str) -> None:
    changed = LOCK.replace(hash_, "dddd")
    LOCK_FILE.write_text(changed)
    restore_lock()
    assert LOCK_FILE.read_text() == changed


@pytest.mark.usefixtures("committed")
def test_restore_lock_keeps_the_lock_of_other_figures() -> None:
    changed = LOCK.replace("bbbb", "dddd")
    LOCK_FILE.write_text(changed)
    Path("report.md").write_text("3.47")
    restore_lock()
    assert LOCK_FILE.read_text() == changed
