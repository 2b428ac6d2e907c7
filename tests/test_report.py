"""Tables and sentences are pure functions of the metrics."""

from pathlib import Path

import pandas as pd

from infini import plots, report

METRICS = {
    "base": {"segmented": {"ppl": 40.0}, "sliding": {"ppl": 36.0}},
    "v1": {
        "distill": {"epochs": 10, "ppl_gap": 20.0},
        "segmented": {"ppl": 44.0},
        "memory_off": {"ppl": 44.0},
    },
    "v2": {
        "distill": {"epochs": 50, "ppl_gap": 10.0, "val_loss": 0.5},
        "segmented": {"ppl": 38.0},
        "memory_off": {"ppl": 40.0},
    },
}


def test_v1_v2_change_as_the_seeds_table_has_it() -> None:
    table = report.metrics_table(METRICS)[["v1", "v2"]]
    versus = report.versus(report.select(table, report.SEED_ROWS))
    assert list(versus.columns) == ["v1", "v2", "change"]
    assert versus.loc["Distillation epochs"].tolist() == ["10", "50", "+40"]
    assert versus.loc["PPL gap (distillation)"].tolist() == ["20.0000", "10.0000", "-50.0 %"]


def test_a_third_version_gets_its_own_columns() -> None:
    table = report.metrics_table(METRICS | {"v9": METRICS["v2"]})[["v1", "v2", "v9"]]
    columns = report.versus(report.select(table, report.SEED_ROWS)).columns
    assert list(columns) == ["v1", "v2", "v2 vs v1", "v9", "v9 vs v1"]


def test_findings_are_computed() -> None:
    sentences = report.findings(report.metrics_table(METRICS))
    assert "10.0 % is what a memory could win" in sentences[0]
    assert "44.00, 10.0 % above the base" in sentences[1]
    assert "memory raises perplexity by 0.00 %" in sentences[1]
    assert "38.00, 5.0 % below the base" in sentences[2]
    assert "memory lowers perplexity by 5.00 %" in sentences[2]
    assert "Context recovery 49 %" in sentences[2]  # ln(40/38) / ln(40/36)


def test_curves_mark_the_best_epoch_and_the_stop() -> None:
    curve = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "val_loss": [3.0, 2, 4]})
    summary = {"epochs": 3, "best_epoch": 2, "stopped_early": 1}
    table = report.curves_table({"v2": curve}, {"v2": summary})
    assert len(table) == 6
    assert set(table.loc[table["event"] == "best", "epoch"]) == {2}
    assert set(table.loc[table["event"] == "stopped", "epoch"]) == {3}


def test_the_same_data_draws_the_same_file(tmp_path: Path) -> None:
    table = report.metrics_table(METRICS)
    for name in ("a", "b"):
        plots.perplexity(table, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_cells() -> None:
    assert report.show(None) == "–"
    assert report.show(float("nan")) == "–"
    assert report.show(12345) == "12,345"
    assert report.show(1e-5) == "1e-05"
    assert report.show(19701.123) == "19,701.1"
    assert report.show(True) == "yes"
