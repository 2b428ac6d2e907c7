"""Every stage killed at twenty moments and on a full disk: `make test-faults`, minutes long.

DVC removes a stage's outputs before it runs it, and records none of a stage that fails: after any
failure the next run must write what an undisturbed one writes.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT

from faults import MOMENTS
from toy import read_params, write_params

# outputs that no dvc.yaml lists
UNLISTED = {"measure_cost": ["reports/costs.csv"]}


class Stage(NamedTuple):
    """A stage that `python -m module words` runs, and the paths that it writes."""

    name: str
    module: str
    words: list[str]
    outputs: list[str]


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def stages_of(file: str) -> list[Stage]:
    """Return every stage of a dvc.yaml, in order, one per version or policy of params.yaml."""
    content, stages = read_params(), []
    lists = {
        f"${{{section}.{key}}}": content[section][key]
        for section in ("policies", "policy_curve", "ruler")
        for key in ("names", "policies", "budgets")
        if key in content[section]
    }
    for name, body in yaml.safe_load((ROOT / file).read_text())["stages"].items():
        one = body.get("do", body)
        outs = [*one.get("outs", UNLISTED.get(name, [])), *one.get("metrics", [])]
        paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
        values = [{"${key}": key} for key in content.get(body.get("foreach", "")[2:-1], [""])]
        if "matrix" in body:
            values = [
                {"${item.policy}": policy}
                | {f"${{item.budget.{key}}}": str(size) for key, size in budget.items()}
                for policy, budget in product(*(lists[x] for x in body["matrix"].values()))
            ]
        for own in values:
            command, *outputs = (fill(text, own) for text in (one["cmd"], *paths))
            module, *words = command.split()[2:]
            stages.append(Stage(" ".join([name, *own.values()]).strip(), module, words, outputs))
    return stages


@pytest.mark.faults
def test_killed_stages_and_full_disks_leave_no_partial_output(
    project: Path, subtests: pytest.Subtests
) -> None:
    content = read_params()
    content["replacements"] = {"v2": content["replacements"]["v2"]}
    content["adapters"] = {"v5": content["adapters"]["v5"]}
    content["pretrain"] |= {
        "vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "warmup": 1, "batch_tokens": 256,
        "phases": [{"corpora": ["text"], "context": 32, "epochs": 1}],
    }  # fmt: skip
    content["policies"] = {
        "names": ["window"], "budgets": [{"window_size": 16, "policy_window": 8}]
    }  # fmt: skip
    write_params(content)
    files = ("dvc.yaml", "reports/dvc.yaml", "base/dvc.yaml")
    stages = [stage for file in files for stage in stages_of(file)]
    assert len(stages) == 14
    done = subprocess.run(
        [sys.executable, ROOT / "tests/faults.py", json.dumps([stage[1:] for stage in stages])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for stage, result in zip(stages, results, strict=False):
        with subtests.test(stage=stage.name):
            check_result(result)
    assert len(results) == len(stages)


def check_result(result: dict[str, Any]) -> None:
    """Check what faults.py reports of a stage."""
    assert result["files"]
    assert result["again"] == [0, result["again"][1]]
    assert result["same"]
    assert not result["wrong"]
    assert not result["left"]
    killed = [code for code, _ in result["killed"]]
    assert len(killed) == MOMENTS
    assert set(killed) <= {-9, 0}
    assert killed.count(-9) >= MOMENTS // 4
    for code, errors in result["full"]:
        assert code in (0, 2), errors
        assert "Traceback" not in errors
        assert not code or errors.splitlines()[-1].startswith("error: ")
    assert result["full"][0][0] == 2  # a disk without a byte left
