"""Every stage killed at twenty moments and on a full disk: `make test-faults`, minutes long.

DVC removes what a stage writes before it runs, and takes nothing from one that fails: whatever
happened before, the next run gives what an undisturbed one gives.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT

from faults import MOMENTS
from toy import read_params, write_params

# What stages write that is in no dvc.yaml.
ON_DEMAND = {"measure_cost": ["reports/costs.csv"]}


class Stage(NamedTuple):
    """One to run: `python -m module words`."""

    name: str
    module: str
    words: list[str]
    outputs: list[str]


def stages_of(file: str) -> list[Stage]:
    """Every stage of a dvc.yaml, for every version or audit of params.yaml, in order."""
    content, found = read_params(), []
    for name, body in yaml.safe_load((ROOT / file).read_text())["stages"].items():
        one = body.get("do", body)
        outs = [*one.get("outs", ON_DEMAND.get(name, [])), *one.get("metrics", [])]
        places = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
        for key in content[body["foreach"][2:-1]] if "foreach" in body else [""]:
            module, *words = one["cmd"].replace("${key}", key).split()[2:]
            outputs = [place.replace("${key}", key) for place in places]
            found.append(Stage(f"{name} {key}".strip(), module, words, outputs))
    return found


@pytest.mark.faults
def test_killed_stages_and_full_disks_leave_no_trace(
    project: Path, subtests: pytest.Subtests
) -> None:
    content = read_params()
    content["replacements"] = {"v2": content["replacements"]["v2"]}
    content["adapters"] = {"v5": content["adapters"]["v5"]}
    content["pretrain"] |= {
        "vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "warmup": 1, "batch_tokens": 256,
        "phases": [{"corpora": ["text"], "context": 32, "epochs": 1}],
    }  # fmt: skip
    write_params(content)
    files = ("dvc.yaml", "reports/dvc.yaml", "base/dvc.yaml")
    stages = [stage for file in files for stage in stages_of(file)]
    assert len(stages) == 15
    done = subprocess.run(
        [sys.executable, ROOT / "tests/faults.py", json.dumps([stage[1:] for stage in stages])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for stage, found in zip(stages, results, strict=False):
        with subtests.test(stage=stage.name):
            check(found)
    assert len(results) == len(stages)


def check(found: dict[str, Any]) -> None:
    """What happened to a stage."""
    assert found["files"]
    assert found["again"] == [0, found["again"][1]]
    assert found["same"]
    assert not found["wrong"]
    assert not found["left"]
    killed = [code for code, _ in found["killed"]]
    assert len(killed) == MOMENTS
    assert set(killed) <= {-9, 0}
    assert killed.count(-9) >= MOMENTS // 4
    for code, said in found["full"]:
        assert code in (0, 2), said
        assert "Traceback" not in said
        assert not code or said.splitlines()[-1].startswith("error: ")
    assert found["full"][0][0] == 2  # not even a byte
