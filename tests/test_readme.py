"""Commands of README.md and docs/pipeline.md run as written, one after the other."""

import re
from pathlib import Path

import pandas as pd
import pytest

from readme import Clone, blocks
from toy import sentence

pytestmark = pytest.mark.readme
PIPELINE = "docs/pipeline.md"
ALWAYS = ["check_inputs", "compare_report"]  # stages that DVC runs every time


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("reader") / "infini")


def stages_run(output: str) -> list[str]:
    """Return the stages that DVC ran, in order."""
    return re.findall(r"Running stage '([^']*)'", output)


def test_default_run_then_all_versions(clone: Clone) -> None:
    (commands,) = blocks("README.md", "## Run and test")
    run, test = commands.splitlines()
    assert test.startswith("make test ")
    output = clone.run(run)
    assert {"prepare_data", "evaluate_ppl_adapter@v5", "compare_report"} <= set(stages_run(output))
    assert "adapter_parallel@v3" not in stages_run(output)
    assert "reports/index.html" in output
    assert "v5" in (clone.folder / "reports/index.html").read_text()
    look, compare, *_ = blocks(PIPELINE, "## Commands")
    output = clone.run(look)
    assert "adapter_parallel@v3" in stages_run(output)
    assert "adapter_parallel@v5" not in stages_run(output)
    for version in ("base", "v1", "v2", "v3", "v4", "v5"):
        assert f"reports/metrics/{version}.json" in output.replace("\n", "")
    assert (clone.folder / "dvc_plots/index.html").is_file()
    assert stages_run(clone.run("dvc repro")) == ALWAYS
    clone.run("git add reports && git commit -qam 'My run'")
    assert "documents" in clone.run(compare)


def test_experiment_with_another_value(clone: Clone) -> None:
    variant, *_ = blocks(PIPELINE, "## Your own variant")
    first, _, rest = clone.run(variant).partition("| Experiment")
    assert "adapter_parallel@v3" in stages_run(first)
    assert "adapter_parallel@v5" not in stages_run(first)
    (row,) = (line for line in rest.splitlines() if "[hot]" in line)
    assert "0.004" in row
    columns = [cell.strip() for cell in f"| Experiment{rest}".splitlines()[0].strip("|").split("|")]
    assert sum(name.endswith("full.ppl") for name in columns) == 1  # the base's
    versions = [name for name in columns if name.endswith("documents.ppl")]
    assert len(versions) >= 5
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert all(cells[columns.index(name)] not in ("", "-") for name in columns[1:])
    assert stages_run(rest) == ALWAYS


def test_experiment_with_own_text_and_base(clone: Clone, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(200):
        (text / f"{i}.txt").write_text(sentence(1000, i))
    clone.give("my-text", text)
    clone.give("my-base", clone.folder / "data/base")
    own = blocks(PIPELINE, "## Your own variant")[1]
    try:
        assert stages_run(clone.run(own)).count("prepare_data") == len(own.splitlines())
    finally:
        clone.run("git restore . && rm -r my-text my-base")


def test_grid_of_experiments(clone: Clone) -> None:
    clone.run(blocks(PIPELINE, "## Your own variant")[2])
    sweep = pd.read_csv(clone.folder / "sweep.csv")
    rows = sweep.dropna(subset=["Experiment"])  # other tests' too
    grid = rows.filter(regex=r"v5\.layer\.(update|window)$")
    assert len(grid.columns) == 2
    assert len(grid.drop_duplicates()) == 6
    assert rows.filter(regex=r"v5.*documents\.nats$").notna().all(axis=None)


def test_remote_gives_a_clone_all_results(clone: Clone) -> None:
    share = blocks(PIPELINE, "## Your own variant")[3]
    assert stages_run(clone.run(share)) == ALWAYS


def test_python_code_of_readme_runs(clone: Clone) -> None:
    retrofit, learned = blocks("README.md", "## Use", "python")
    (clone.folder / "snippet.py").write_text(f"{retrofit}\n{learned}")
    assert len(clone.run("python snippet.py")) > 20
