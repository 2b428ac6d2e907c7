"""Reading committed results."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infini.errors import InputError
from infini.evaluation.estimates import Estimate, estimates_of
from infini.files import write_json
from infini.paths import COSTS, PREPARED, TIMES, Version
from infini.report.results import (
    figures_at_windows,
    read_metrics,
    read_results,
    read_times,
    read_training,
    stale_files,
)
from report.toy_results import METRICS_BY_VERSION, SETUP, version_metrics, write_results

NAMES = ["base", "v1", "v2", "v3"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path)
    return tmp_path


def test_read_results_reads_all_committed_files(folder: Path) -> None:
    results = read_results(SETUP)
    assert list(results.metrics) == list(results.figures) == list(results.curves) == NAMES
    assert results.metrics["v3"] == METRICS_BY_VERSION["v3"]
    assert results.figures["v3"]["documents.ppl"] == Estimate(38.0, 0.5)
    assert results.figures["v3"]["control.gain"] == Estimate(0.005, 0.001, difference=True)
    assert results.missing == []
    assert set(results.costs["version"]) == set(NAMES)
    assert results.prepared["padding_share"] == 0.125
    assert {step: set(t["version"]) for step, t in results.training.items()} == {
        "distill": {"v1", "v2"},
        "finetune": {"v1", "v2", "v3"},
    }


def test_read_results_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = read_results(SETUP)
    assert not results.metrics
    assert not results.curves
    assert not results.prepared
    assert results.missing == NAMES
    assert results.costs.empty
    assert all(table.empty for table in results.training.values())


def test_figures_include_the_spread_over_seeds(folder: Path) -> None:
    spread = {"spread": {"documents": {"ppl": 1.2}}}
    write_json(Version("v3").metrics, version_metrics(38.0, 0.05, 0.005) | spread)
    figure = read_results(SETUP).figures["v3"]["documents.ppl"]
    assert figure == Estimate(38.0, math.hypot(0.5, 1.2))


def test_read_results_leaves_out_costs_of_unknown_versions(folder: Path) -> None:
    results = read_results(replace(SETUP, adapters={}))
    assert set(results.costs["version"]) == {"base", "v1", "v2"}


def test_figures_at_windows_are_by_window() -> None:
    tree = version_metrics(38.0, 0.05, 0.005)
    tree |= {"at_window_256": version_metrics(37.0, 0.01, 0.001), "at_window_128": {"x": 1}}
    found = figures_at_windows(estimates_of(tree))
    assert list(found) == [128, 256]
    assert found[256]["documents.ppl"] == Estimate(37.0, 0.5)
    assert found[256]["control.gain"] == Estimate(0.001, 0.001, difference=True)


def test_read_training_marks_best_and_last_epoch(folder: Path) -> None:
    table = read_training("finetune", {"v3": SETUP.versions["v3"]})
    rows = {(row.split, row.epoch): (row.loss, row.event) for row in table.itertuples()}
    assert rows == {
        ("train", 1): (3.0, "best"),
        ("train", 2): (2.0, "stopped"),
        ("val", 1): (3.0, "best"),
        ("val", 2): (4.0, "stopped"),
    }


def test_read_training_tells_seeds_apart(folder: Path) -> None:
    write_results(folder, seeds=(0, 1))
    table = read_training("finetune", {"v3": SETUP.versions["v3"]})
    assert list(table["version"].unique()) == ["v3 seed 0", "v3 seed 1"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"documents": {"ppl": "high"}}, "v3.json: documents.ppl must be a finite number, got"),
        ({"documents": {"ppl": 1e300}}, "documents.ppl must be a finite number, got 1e"),
        ({"documents": {"ppl": None}}, "documents.ppl must be a finite number, got None"),
        ({"documents": {"ppl": -1.0}}, "documents.ppl must be ≥ 0, got -1.0"),
        ({"state_bytes": {"total": -8}}, "state_bytes.total must be ≥ 0, got -8"),
    ],
)
def test_read_metrics_rejects_impossible_values(
    folder: Path, changed: dict[str, Any], message: str
) -> None:
    write_json(Version("v3").metrics, METRICS_BY_VERSION["v3"] | changed)
    with pytest.raises(InputError, match=message):
        read_metrics("v3")


def test_read_metrics_names_a_missing_key(folder: Path) -> None:
    tree = {key: value for key, value in METRICS_BY_VERSION["v3"].items() if key != "baseline"}
    write_json(Version("v3").metrics, tree)
    with pytest.raises(InputError, match=r"v3\.json: no baseline in it; run the stage"):
        read_results(SETUP)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (Version("base").metrics, "{", "base.json: not JSON"),
        (Version("v1").curves, "curve,x\n", "v1.csv: no column series, value"),
        (Version("v1").curves, "curve,x,series,value\na,1,b,2\n", "v1.csv: a curve without"),
        (Version("v1").curves, "curve,x,series,value,se\na,1,b,,\n", "v1.csv: "),
        (Version("v1").training_curve("distill"), "epoch\n1\n", "distill.csv: no column train_"),
        (Version("v1").training_record("distill"), "{}", "distill.json: no 0 in it"),
        (COSTS, "version\nbase\n", "costs.csv: no column length"),
        (PREPARED, "{}", "prepared.json: no splits in it"),
    ],
)
def test_read_results_names_a_damaged_file(
    folder: Path, file: Path, content: str, message: str
) -> None:
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_results(SETUP)
    assert "\n" not in str(error.value)


def test_read_times_leaves_out_other_versions(folder: Path) -> None:
    for name in ("base-evaluate", "v3-finetune", "prepare-data", "v9-finetune"):
        write_json(TIMES / f"{name}.json", {"seconds": 2.0, "startup": 1.0})
    assert list(read_times(SETUP)) == ["base-evaluate", "prepare-data", "v3-finetune"]


def test_stale_files_are_those_of_removed_versions(folder: Path) -> None:
    stale = stale_files(replace(SETUP, adapters={}))
    assert stale == sorted(
        [Version("v3").metrics, Version("v3").curves, Path("reports/training/v3")]
    )
    assert not stale_files(SETUP)
