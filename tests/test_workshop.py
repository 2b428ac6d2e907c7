"""Editors, hooks and the workflow run the same commands as a person who reads the README."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def read(file: str) -> dict:
    text = (ROOT / file).read_text()
    return json.loads(text) if file.endswith(".json") else yaml.safe_load(text)


def of_make(text: str) -> set[str]:
    return set(re.findall(r"\bmake ([a-z-]+)", text))


def test_the_workflow_runs_the_readmes_test_command_and_what_it_leaves_out() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    commands = {name: [s["run"] for s in job["steps"] if "run" in s] for name, job in jobs.items()}
    assert commands["test"][0] == "make test"
    assert re.search(r"^make test +# ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert 'dvc metrics diff --md "$BEFORE" HEAD' in commands["test"][1]
    assert "$GITHUB_STEP_SUMMARY" in commands["test"][1]
    assert commands["slow"][0] == "make test-slow"
    assert commands["slow"][1] in (ROOT / "docs/testing.md").read_text()  # pip-audit


def test_what_the_workflow_compares_is_there() -> None:
    checkout = read(".github/workflows/test.yml")["jobs"]["test"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0  # all of it: a push may be of many commits


@pytest.mark.parametrize(
    "file",
    [
        ".devcontainer/devcontainer.json",
        ".vscode/tasks.json",
        ".github/workflows/test.yml",
        "CONTRIBUTING.md",
        "README.md",
    ],
)
def test_every_make_target_that_is_named_exists(file: str) -> None:
    named = of_make((ROOT / file).read_text())
    assert named
    assert named <= TARGETS


def test_tasks_are_run_test_report_and_study() -> None:
    tasks = {task["label"]: task["command"] for task in read(".vscode/tasks.json")["tasks"]}
    assert set(tasks) == {"run", "test", "report", "study"}
    assert tasks["report"].endswith("compare_report")
    assert "iterative.dvc" in read(".vscode/extensions.json")["recommendations"]


def test_hooks_are_tools_of_the_environment() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert f"$(BIN)/{Path(program).name}" in MAKEFILE  # `make test` runs it too


def test_artifacts_are_there_and_none_is_a_version() -> None:
    artifacts = read("dvc.yaml")["artifacts"]
    assert artifacts["base"]["path"] == read("params.yaml")["base"]["model"]
    for artifact in artifacts.values():
        assert (ROOT / artifact["path"]).is_dir()
        assert artifact["type"] == "model"
