"""What belongs to the results is the same in every run; what belongs to the run is told apart."""

import subprocess
from pathlib import Path

import pytest

from infini.report import provenance


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("seed: 0\n")
    for name in ("samples", "documents"):
        Path(name).mkdir()
        (Path(name) / "train.parquet").write_bytes(name.encode())
    return tmp_path


def hashes() -> dict[str, str]:
    return provenance.of_results(Path("params.yaml"), [Path("samples"), Path("documents")])


def test_params_and_data_are_hashed(folder: Path) -> None:
    first = hashes()
    assert list(first) == ["params.yaml", "prepared data"]
    assert hashes() == first
    Path("params.yaml").write_text("seed: 1\n")
    assert hashes()["params.yaml"] != first["params.yaml"]
    assert hashes()["prepared data"] == first["prepared data"]
    Path("documents/train.parquet").write_bytes(b"other")
    assert hashes()["prepared data"] != first["prepared data"]


def git(*words: str) -> None:
    who = ("-c", "user.email=nobody@example.com", "-c", "user.name=nobody")
    subprocess.run(("git", *who, *words), check=True, capture_output=True)


def test_the_run_has_its_commit_software_and_hardware(folder: Path) -> None:
    run = provenance.of_this_run()
    assert run["commit"] == ""  # not in a repository
    assert set(run) == {"commit", "python", *provenance.PACKAGES, "hardware"}
    assert "cores of" in run["hardware"]
    Path("infini").mkdir()
    Path("stages").mkdir()
    for file in ("infini/x.py", "stages/x.py", "other"):
        Path(file).write_text("")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = provenance.of_this_run()["commit"]
    assert len(commit) == 12
    Path("other").write_text("no code")
    assert provenance.of_this_run()["commit"] == commit
    Path("infini/x.py").write_text("changed")
    assert provenance.of_this_run()["commit"] == f"{commit}, with changes"
