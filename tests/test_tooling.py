"""Makefile, workflow, hooks and artifacts: what they name exists, and CI runs `make test`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def read(file: str) -> dict[str, Any]:
    text = (ROOT / file).read_text()
    content: dict[str, Any] = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    return content


def test_ci_runs_the_make_targets_of_tests() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    commands = {name: [s["run"] for s in job["steps"] if "run" in s] for name, job in jobs.items()}
    assert commands["test"][0] == "make test"
    assert commands["slow"][0] == "make test-slow"
    assert jobs["test"]["steps"][0]["with"]["fetch-depth"] == 0  # dvc metrics diff reads history
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")


@pytest.mark.parametrize(
    "file",
    [
        ".devcontainer/devcontainer.json",
        ".vscode/tasks.json",
        ".github/workflows/test.yml",
        "CONTRIBUTING.md",
        "README.md",
        "docs/pipeline.md",
    ],
)
def test_make_targets_named_in_a_file_exist(file: str) -> None:
    named = set(re.findall(r"(?:^|[`\"]|run: )make ([a-z-]+)", (ROOT / file).read_text(), re.M))
    assert named
    assert named <= TARGETS


def test_hooks_are_tools_of_make_test() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert f"$(BIN)/{Path(program).name}" in MAKEFILE


def test_torch_is_pinned_alike() -> None:
    (torch,) = re.findall(r"^TORCH := (.*)$", MAKEFILE, re.MULTILINE)
    assert f'"{torch}"' in (ROOT / "pyproject.toml").read_text()
    assert torch in (ROOT / "constraints.txt").read_text().split()


def test_artifacts_exist() -> None:
    artifacts = read("dvc.yaml")["artifacts"]
    assert artifacts["base"]["path"] == read("params.yaml")["base"]["model"]
    for artifact in artifacts.values():
        assert (ROOT / artifact["path"]).is_dir()
        assert artifact["type"] == "model"
