"""DVC on a toy project: what it runs again, what it rejects, killed and concurrent runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from toy import read_params, stage, write_params


@pytest.fixture
def repository(project: Path) -> Path:
    """The toy project with this package's code, under Git and DVC."""
    for name in ("infini", "stages"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, name)
    shutil.copytree(ROOT / "data/base", "data/base")  # a dep, whatever the base is
    shell("git", "init", "-q")
    shell(sys.executable, "-m", "dvc", "init", "-q")
    return project


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def start(*targets: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets],
        env=os.environ | {"PATH": path, "PYTHONPATH": "."}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def repro(*targets: str) -> subprocess.CompletedProcess[str]:
    process = start(*targets)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_prepare_data_runs_again_after_text_changes_in_place(repository: Path) -> None:
    assert repro("prepare_data").returncode == 0
    assert "'prepare_data' didn't change" in repro("prepare_data").stdout
    before = Path("data/prepared/documents/train.parquet").read_bytes()
    for file in Path("text").iterdir():
        file.write_text(file.read_text()[::-1])
    assert "Running stage 'prepare_data'" in repro("prepare_data").stdout
    assert Path("data/prepared/documents/train.parquet").read_bytes() != before


def test_version_name_never_reaches_a_shell(repository: Path) -> None:
    content = read_params()
    content["adapters"]["$(touch${IFS}seen)"] = content["adapters"]["v3"]
    write_params(content)
    done = repro()
    assert done.returncode != 0
    assert "params.yaml: adapters.$(touch${IFS}seen)" in done.stderr
    assert not Path("seen").exists()


def prepared() -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in Path("data/prepared").rglob("*.*") if f.is_file()}


@pytest.mark.faults
def test_concurrent_runs_wait_or_report_the_lock(repository: Path) -> None:
    stage("check_inputs")
    stage("prepare_data")
    right = prepared()
    runs = [start("prepare_data") for _ in range(2)]
    messages = [run.communicate()[1] for run in runs]
    assert any(run.returncode == 0 for run in runs), messages
    for run, errors in zip(runs, messages, strict=True):
        assert run.returncode == 0 or "lock" in errors
        assert "Traceback" not in errors
    assert "'prepare_data' didn't change" in repro("prepare_data").stdout
    assert prepared() == right


@pytest.mark.faults
def test_killed_runs_leave_no_partial_output(repository: Path) -> None:
    stage("check_inputs")
    stage("prepare_data")
    right = prepared()
    began = time.perf_counter()
    assert repro("prepare_data").returncode == 0
    seconds = time.perf_counter() - began
    for moment in range(8):
        Path("dvc.lock").unlink(missing_ok=True)
        shutil.rmtree(".dvc/cache/runs", ignore_errors=True)  # or there is nothing left to do
        run = start("prepare_data")
        time.sleep(seconds * (moment + 0.5) / 8)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    done = repro("prepare_data")
    assert done.returncode == 0, done.stderr
    assert prepared() == right
    assert "'prepare_data' didn't change" in repro("prepare_data").stdout
