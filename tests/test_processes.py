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


def environment(launch: str = "") -> dict[str, str]:
    return os.environ | {
        "INFINI_LAUNCH": launch,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def start(stage: str, version: str = "", launch: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"stages.{stage}", *version.split()]
    return subprocess.Popen(
        command, env=environment(launch), stderr=subprocess.PIPE, text=True, start_new_session=True
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
    # Six digits are written; a small difference of sums is known to fewer.
    assert figures() == pytest.approx(one, rel=1e-5, abs=1e-6)


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


KILLED = """
import os, signal
from infini.training import checkpoint
from stages.distill_layer0 import main

replace, left = os.replace, [{after}]

def killed(*files):
    left[0] -= 1
    if left[0] or {written}:
        replace(*files)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.os.replace = killed
main("v2")
"""


def test_a_stage_killed_again_and_again_ends_with_the_same_bits(prepared: Path) -> None:
    """Right after a checkpoint is written, and right before it takes the last one's place."""
    content = read_params()
    content["replacements"]["v2"]["distill"] |= {"epochs": 20, "patience": None}
    write_params(content)
    stage("distill_layer0", "v2")
    outputs = [
        *Path("data/models/v2/distill/seed0").iterdir(),
        Path("data/training/v2/distill.csv"),
    ]
    expected = {file: file.read_bytes() for file in outputs}
    for file in outputs:
        file.unlink()
    for after, written in ((1, True), (5, False), (9, True)):
        code = KILLED.format(after=after, written=written)
        process = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
        assert process.returncode == -signal.SIGKILL
        assert len(list(Path(".checkpoints").glob("*.safetensors"))) == 1
    assert "goes on in epoch 15" in run("distill_layer0", "v2")
    assert {file: file.read_bytes() for file in outputs} == expected
    assert not Path(".checkpoints").exists()
