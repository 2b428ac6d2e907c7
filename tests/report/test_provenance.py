"""Provenance of a report."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infini.paths import COSTS_LOCK
from infini.report.provenance import costs_are_stale, run_provenance

DVC = (sys.executable, "-m", "dvc")


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def test_run_provenance_has_software_and_hardware() -> None:
    found = run_provenance()
    assert {"commit", "python", "torch", "dvc", "hardware"} <= found.keys()
    assert " cores of " in found["hardware"]


def test_run_provenance_tells_changed_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_provenance()["commit"] == ""
    shell("git", "init", "-q")
    Path("params.yaml").write_text("seed: 0\n")
    shell("git", "add", ".")
    shell("git", "-c", "user.name=n", "-c", "user.email=n@example.com", "commit", "-qm", "one")
    commit = run_provenance()["commit"]
    assert len(commit) == 12
    Path("params.yaml").write_text("seed: 1\n")
    assert run_provenance()["commit"] == f"{commit}, with changes"


def test_costs_are_stale_when_their_params_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell("git", "init", "-q")
    shell(*DVC, "init", "-q")
    Path("params.yaml").write_text("cost: 1\nother: 1\n")
    COSTS_LOCK.parent.mkdir()
    stage = {"wdir": "..", "cmd": "echo", "params": ["cost"]}
    COSTS_LOCK.with_suffix(".yaml").write_text(yaml.safe_dump({"stages": {"costs": stage}}))
    assert not costs_are_stale()  # never measured
    shell(*DVC, "repro", "reports/dvc.yaml")
    assert not costs_are_stale()
    Path("params.yaml").write_text("cost: 1\nother: 2\n")
    assert not costs_are_stale()
    Path("params.yaml").write_text("cost: 2\nother: 2\n")
    assert costs_are_stale()
