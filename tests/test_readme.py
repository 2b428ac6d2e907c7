"""Commands of README.md and docs/pipeline.md run as written, one after the other."""

import re
import time
from pathlib import Path

import pandas as pd
import pytest

from readme import Clone, blocks
from toy import sentence

pytestmark = pytest.mark.readme
PIPELINE = "docs/pipeline.md"
ALWAYS = ["check_inputs"]  # a stage that DVC runs every time


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("reader") / "infini")


def ran(output: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '([^']*)'", output)


def test_run_and_look(clone: Clone) -> None:
    (commands,) = blocks("README.md", "## Run and test")
    run, test = commands.splitlines()
    assert test.startswith("make test ")
    said = clone.run(run)
    assert {"prepare_data", "evaluate_ppl_adapter@v5", "compare_report"} <= set(ran(said))
    page = clone.folder / "reports/index.html"
    assert str(page.relative_to(clone.folder)) in said
    assert "v5" in page.read_text()
    look, compare, *_ = blocks(PIPELINE, "## Commands")
    said = clone.run(look)
    assert ran(said) == ALWAYS
    for version in ("base", "v1", "v2", "v3", "v4", "v5"):
        assert f"reports/metrics/{version}.json" in said.replace("\n", "")
    assert (clone.folder / "dvc_plots/index.html").is_file()
    clone.run("git commit -qam 'My run'")
    assert "documents" in clone.run(compare)


def test_a_variant_beside_it(clone: Clone) -> None:
    variant, *_ = blocks(PIPELINE, "## Your own variant")
    said = clone.run(variant)
    first, _, rest = said.partition("| Experiment")
    assert "adapter_parallel@v3" in ran(first)
    assert "adapter_parallel@v5" not in ran(first), "it does not depend on v3"
    (row,) = (line for line in rest.splitlines() if "[hot]" in line)
    assert "0.004" in row
    assert ran(rest) == ALWAYS, "back to what was there, out of the cache"


def test_own_text_and_own_base(clone: Clone, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(200):
        (text / f"{i}.txt").write_text(sentence(1000, i))
    clone.give("my-text", text)
    clone.give("my-base", clone.folder / "data/base")
    own = blocks(PIPELINE, "## Your own variant")[1]
    try:
        assert ran(clone.run(own)).count("prepare_data") == len(own.splitlines())
    finally:
        clone.run("git restore . && rm -r my-text my-base")


def test_a_queued_grid(clone: Clone) -> None:
    queue = blocks(PIPELINE, "## Your own variant")[2]
    *start, table = queue.splitlines()
    clone.run("\n".join(start))
    while re.search(r"Queued|Running", clone.run("dvc queue status")):
        time.sleep(2)
    clone.run(table)
    sweep = pd.read_csv(clone.folder / "sweep.csv")
    rows = sweep.dropna(subset=["Experiment"])  # other tests' too
    grid = rows.filter(regex=r"v5\.layer\.(update|window)$")
    assert len(grid.columns) == 2
    assert len(grid.drop_duplicates()) == 6
    assert rows.filter(regex=r"v5.*documents\.nats$").notna().all(axis=None)


def test_shared_by_a_remote(clone: Clone) -> None:
    share = blocks(PIPELINE, "## Your own variant")[3]
    assert ran(clone.run(share)) == ALWAYS


def test_in_python(clone: Clone) -> None:
    (code,) = blocks("README.md", "## Use", "python")
    (clone.folder / "snippet.py").write_text(code)
    assert len(clone.run("python snippet.py")) > 20
