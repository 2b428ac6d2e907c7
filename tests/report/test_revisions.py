"""Two revisions side by side, of a real repository."""

import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from infini.errors import InputError
from infini.evaluation.estimates import Estimate
from infini.report.cells import show
from infini.report.revisions import compare, settings, table

DVC = (sys.executable, "-m", "dvc")


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit without metrics, two with, and an experiment over the last."""
    folder = tmp_path_factory.mktemp("repository")
    with chdir(folder):
        build()
    return folder


@pytest.fixture
def repository(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


def build() -> None:
    shell("git", "init", "-q", "-b", "main")
    shell("git", "config", "user.email", "nobody@example.com")
    shell("git", "config", "user.name", "nobody")
    shell(*DVC, "init", "-q")
    shell("git", "commit", "-qm", "nothing yet")
    Path("reports/metrics").mkdir(parents=True)
    files = [f"reports/metrics/{v}.json" for v in ("base", "v1")]
    script = "import json, ruamel.yaml as y\nlr = y.YAML().load(open('params.yaml'))['lr']\n"
    script += f"for f in {files}:\n"
    script += "    json.dump({'ppl': 40.0 - lr, 'ppl_se': 0.1, 'n': 3}, open(f, 'w'))\n"
    Path("train.py").write_text(script)
    metrics = [{file: {"cache": False}} for file in files]
    stage = {
        "cmd": f"{sys.executable} train.py",
        "params": ["lr"],
        "deps": ["train.py"],
        "metrics": metrics,
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    for lr in (1.0, 2.0):
        Path("params.yaml").write_text(f"lr: {lr}\n")
        shell(*DVC, "repro", "-q")
        shell("git", "add", "-A")
        shell("git", "commit", "-qm", f"lr {lr}")
    shell(*DVC, "exp", "run", "-q", "-n", "faster", "-S", "lr=3.0")


def test_what_differs_has_both_figures_and_the_change() -> None:
    first = {"v1: ppl": Estimate(40.0, 0.1), "v1: n": Estimate(3), "gone": Estimate(1.0)}
    last = {"v1: ppl": Estimate(38.0, 0.1), "v1: n": Estimate(3), "new": Estimate(2.0)}
    cells = table(first, last, ("A", "A")).cells
    assert list(cells.columns) == ["A", "A ", "change"]  # a revision with itself: two columns
    assert cells.map(show).to_dict("index") == {
        "v1: ppl": {"A": "40.00 ± 0.10", "A ": "38.00 ± 0.10", "change": "−5.0 %"},
        "gone": {"A": "1.0000", "A ": "–", "change": "–"},
        "new": {"A": "–", "A ": "2.0000", "change": "–"},
    }


def test_settings_that_differ_are_listed() -> None:
    first, last = {"lr": [0], "seed": 0, "gone": 1}, {"lr": [0, 1], "seed": 0, "new": None}
    cells = settings(first, last, ("A", "B")).cells
    assert cells.map(show).to_dict("index") == {
        "lr": {"A": "[0]", "B": "[0, 1]"},
        "gone": {"A": "1", "B": "–"},
        "new": {"A": "–", "B": "None"},
    }


def test_commits_and_experiments(repository: None) -> None:
    shown = compare("HEAD~1", "faster")
    row = next(line for line in shown.splitlines() if line.startswith("| v1: ppl"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "39.00 ± 0.10",
        "37.00 ± 0.10",
        "−5.1 %",
    ]
    assert "2 metrics differ, 2 are equal" in shown
    assert "| lr" in shown
    assert "0 metrics differ, 4 are equal" in compare("HEAD", "HEAD")


def test_an_unknown_revision_is_named(repository: None) -> None:
    with pytest.raises(InputError, match=r"^nowhere: no such revision"):
        compare("HEAD", "nowhere")


def test_a_revision_without_metrics_is_named(repository: None) -> None:
    with pytest.raises(InputError, match=r"^HEAD~2: no reports/metrics/\*.json there; run"):
        compare("HEAD~2", "HEAD")
