"""Two revisions side by side: cells, noise, and a real repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infini.cells import Figure, change, figures, show
from infini.compare import main


def test_a_figure_has_its_spread_or_its_standard_error() -> None:
    tree = {"a": {"ppl": 2.0, "ppl_se": 0.5}, "n": 3, "b": {"x": 1.0, "x_se": 0.1}}
    assert figures(tree) == {"a.ppl": (2.0, 0.5), "n": (3, None), "b.x": (1.0, 0.1)}
    assert figures(tree | {"spread": {"a": {"ppl": 0.7}}})["a.ppl"] == (2.0, 0.7)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (None, None, "–"),
        (float("nan"), None, "–"),
        (12345, None, "12,345"),
        (1e-5, None, "1e-05"),
        (19701.123, None, "19,701.1"),
        (-0.5, None, "−0.5000"),
        (32.4613, 0.3512, "32.46 ± 0.35"),
        (12508.7, 310.0, "12,510 ± 310"),
        (-0.012345, 0.00234, "−0.0123 ± 0.0023"),
        (1.0, float("nan"), "1.0000"),
    ],
)
def test_cells(value: float, error: float | None, shown: str) -> None:
    assert show(value, error) == shown


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (Figure(10), Figure(50), "+40"),
        (Figure(20.0), Figure(10.0), "−50.0 %"),
        (Figure(10.0, 1.0), Figure(11.0, 1.0), "+10.0 % (within noise)"),
        (Figure(10.0, 0.1), Figure(11.0, 0.1), "+10.0 %"),
        (Figure(-1.0, 0.1), Figure(-2.0, 0.1), "−1"),
        (None, Figure(1.0), "–"),
    ],
)
def test_changes(first: Figure | None, last: Figure | None, shown: str) -> None:
    assert change(first, last) == shown


DVC = (sys.executable, "-m", "dvc")


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, and an experiment over the second."""
    monkeypatch.chdir(tmp_path)
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
    shell("git", "init", "-q", "-b", "main")
    shell("git", "config", "user.email", "nobody@example.com")
    shell("git", "config", "user.name", "nobody")
    shell(*DVC, "init", "-q")
    for lr in (1.0, 2.0):
        Path("params.yaml").write_text(f"lr: {lr}\n")
        shell(*DVC, "repro", "-q")
        shell("git", "add", "-A")
        shell("git", "commit", "-qm", f"lr {lr}")
    shell(*DVC, "exp", "run", "-q", "-n", "faster", "-S", "lr=3.0")
    return tmp_path


def test_commits_and_experiments(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["HEAD~1", "faster"])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| v1: ppl"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "39.00 ± 0.10",
        "37.00 ± 0.10",
        "−5.1 %",
    ]
    assert "2 metrics differ, 2 are equal" in shown
    assert "| lr" in shown
    assert Path("reports/revisions/HEAD~1..faster.md").read_text() in shown

    main(["HEAD", "HEAD"])
    assert "0 metrics differ, 4 are equal" in capsys.readouterr().out


def test_an_unknown_revision_is_named(repository: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: nowhere: no such revision"):
        main(["HEAD", "nowhere"])
    assert json.loads(Path("reports/metrics/v1.json").read_text())["n"] == 3
