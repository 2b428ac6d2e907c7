"""Stages in one and two processes, and killed ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from toy import read_params, stage, write_params

TWO = "accelerate launch --num_processes 2"


def environment(launch: str = "") -> dict[str, str]:
    return os.environ | {
        "INFINI_LAUNCH": launch,
        "PYTHONPATH": f"{ROOT}:.",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def start(module: str, version: str, launch: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, version]
    return subprocess.Popen(
        command, env=environment(launch), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(module: str, version: str, launch: str) -> str:
    process = start(module, version, launch)
    with ended(process):
        _, errors = process.communicate(timeout=480)
    assert process.returncode == 0, errors
    return errors


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process and its children at the end of the block."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def numbers(value: object) -> dict[str, float]:
    """Return every number of nested metrics by path."""
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


def all_metrics() -> dict[str, float]:
    files = [*Path("reports/training").rglob("*.json"), *Path("reports/metrics").glob("*.json")]
    return numbers({str(file): json.loads(file.read_text()) for file in files})


SEVERAL = """
import importlib
from infini import processes
from infini.console.stage import run_stage

def main(version):
    for name in {stages}:
        importlib.import_module("stages." + name).main(version)
        processes.accelerator().wait_for_everyone()

run_stage(main, parallel=True)
"""


@pytest.mark.parametrize(
    ("launch", "version", "stages"),
    [
        (TWO, "v2", ["distill_layer0", "finetune_long_context", "evaluate_ppl"]),
        (f"{TWO} --use_fsdp --fsdp_version 2", "v3", ["adapter_parallel", "evaluate_ppl"]),
    ],
    ids=["data parallel", "sharded base"],
)
def test_two_processes_agree_with_one_process(
    prepared: Path, launch: str, version: str, stages: list[str]
) -> None:
    stage("evaluate_ppl", "base")
    for name in stages:
        stage(name, version)
    one = all_metrics()
    shutil.rmtree("data/models")
    shutil.rmtree("reports/training")
    # One launch for all of them: what takes long is starting three processes.
    Path("several.py").write_text(SEVERAL.format(stages=stages))
    run("several", version, launch)
    assert len(one) > 20
    # Six digits are written; a small difference of sums is known to fewer.
    assert all_metrics() == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_killed_worker_ends_the_stage(prepared: Path) -> None:
    content = read_params()
    content["replacements"]["v2"]["distill"]["epochs"] = 10**6
    content["replacements"]["v2"]["distill"]["patience"] = None
    write_params(content)
    process = start("stages.distill_layer0", "v2", TWO)
    with ended(process):
        workers = training(process)
        workers[1].kill()
        process.communicate(timeout=240)
    assert process.returncode > 0
    assert not workers[0].is_running()
    assert not Path("data/models/v2").exists()


def training(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the launcher's two workers once they have written a checkpoint."""
    deadline = time.monotonic() + 240
    while not list(Path(".checkpoints").glob("*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [p for p in psutil.Process(process.pid).children() if "stages" in str(p.cmdline())]
    assert len(workers) == 2
    return workers


KILLED = """
import os, signal
from infini.console.stage import run_stage
from infini.training import checkpoint
from stages.distill_layer0 import main

replace = os.replace

def killed(after, written):
    "Die right after (written) or right before a checkpoint is written, the `after`-th."
    def instead(*files):
        nonlocal after
        after -= 1
        if after or written:
            replace(*files)
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.os.replace = instead
    run_stage(main)

for after, written in ((1, True), (5, False), (9, True)):
    child = os.fork()  # nothing has run in it yet
    if not child:
        killed(after, written)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len([name for name in os.listdir(".checkpoints") if name.endswith(".safetensors")]) == 1
run_stage(main)
"""


def test_stage_killed_repeatedly_ends_bit_identical(prepared: Path) -> None:
    content = read_params()
    content["replacements"]["v2"]["distill"] |= {"epochs": 20, "patience": None}
    write_params(content)
    stage("distill_layer0", "v2")
    outputs = [
        *Path("data/models/v2/distill/seed0").iterdir(),
        Path("reports/training/v2/distill.csv"),
    ]
    expected = {file: file.read_bytes() for file in outputs}
    for file in outputs:
        file.unlink()
    Path("killed.py").write_text(KILLED)
    assert "continues in epoch 15" in run("killed", "v2", "")
    assert {file: file.read_bytes() for file in outputs} == expected
    assert not Path(".checkpoints").exists()
