"""Stages in processes of their own: one or two of them, killed ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from toy import read_params, stage, write_params

TWO = "accelerate launch --num_processes 2"


def start(stage: str, version: str = "", launch: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {
        "INFINI_LAUNCH": launch,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", f"stages.{stage}", *version.split()]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(stage: str, version: str = "", launch: str = "") -> str:
    process = start(stage, version, launch)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def numbers(value: object) -> dict[str, float]:
    """Every number of nested metrics, by its path."""
    if isinstance(value, dict):
        return {f"{k}/{n}": x for k, v in value.items() for n, x in numbers(v).items()}
    return {"": value} if isinstance(value, int | float) else {}


@pytest.fixture
def prepared(project: Path) -> Path:
    content = read_params()
    content["replacements"]["v2"]["distill"]["batch_size"] = 3
    # Three documents in steps of two: in every second step one of two processes is idle.
    content["replacements"]["v2"]["finetune"] |= {"documents": 4, "batch_size": 2}
    write_params(content)
    stage("prepare_data")
    return project


def figures() -> dict[str, float]:
    files = [*Path("data/training").rglob("*.json"), *Path("reports/metrics").glob("*.json")]
    return numbers({str(file): json.loads(file.read_text()) for file in files})


@pytest.mark.parametrize(
    ("launch", "version", "stages"),
    [
        (TWO, "v2", ["distill_layer0", "finetune_long_context", "evaluate_ppl"]),
        (f"{TWO} --use_fsdp --fsdp_version 2", "v3", ["adapter_parallel", "evaluate_ppl"]),
    ],
    ids=["data parallel", "sharded base"],
)
def test_two_processes_agree_with_one(
    prepared: Path, launch: str, version: str, stages: list[str]
) -> None:
    stage("evaluate_ppl", "base")
    for name in stages:
        stage(name, version)
    one = figures()
    shutil.rmtree("data/models")
    shutil.rmtree("data/training")
    for name in stages:
        run(name, version, launch)
    assert len(one) > 20
    assert figures() == pytest.approx(one, rel=1e-5, abs=1e-4)  # metrics have four decimals


def test_a_killed_worker_ends_the_stage(prepared: Path) -> None:
    content = read_params()
    content["replacements"]["v2"]["distill"]["epochs"] = 10**6
    content["replacements"]["v2"]["distill"]["patience"] = None
    write_params(content)
    process = start("distill_layer0", "v2", TWO)
    checkpoints = Path(".checkpoints")
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and any(checkpoints.glob("*.safetensors"))):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [p for p in psutil.Process(process.pid).children() if "stages" in str(p.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    try:
        process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert not Path("data/models/v2").exists()


def test_a_stage_killed_again_and_again_ends_with_the_same_bits(prepared: Path) -> None:
    content = read_params()
    content["replacements"]["v2"]["distill"] |= {"epochs": 60, "patience": None}
    write_params(content)
    stage("distill_layer0", "v2")
    outputs = [
        *Path("data/models/v2/distill/seed0").iterdir(),
        Path("data/training/v2/distill.csv"),
    ]
    expected = {file: file.read_bytes() for file in outputs}
    for file in outputs:
        file.unlink()
    for after in (1, 12, 30):  # checkpoints
        process = start("distill_layer0", "v2")
        last, seen = None, 0
        while seen < after:
            assert process.poll() is None
            now = [file.stat().st_mtime_ns for file in Path(".checkpoints").glob("*.safetensors")]
            last, seen = now, seen + (now != last and bool(now))
        process.kill()
        process.communicate()
    assert "goes on in epoch" in run("distill_layer0", "v2")
    assert {file: file.read_bytes() for file in outputs} == expected
    assert not Path(".checkpoints").exists()
