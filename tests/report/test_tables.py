"""Tables of the report."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from infini.evaluation.estimates import estimates_of
from infini.report import tables
from infini.report.results import Results
from report.toy_results import METRICS_BY_VERSION, SETUP, costs, toy_results, version_metrics

FIGURES = {name: estimates_of(tree) for name, tree in METRICS_BY_VERSION.items()}
SEGMENTED, FULL = "base, segments without memory", "base, full attention"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    return toy_results(tmp_path, monkeypatch)


def test_headline_has_a_row_a_version_after_the_base(results: Results) -> None:
    table = tables.headline_table(results)
    assert list(table.columns) == [
        "nats per token", "state bytes", "baseline", "gain over the baseline",
        "gain over the control", "recovery, %", "beats both",
    ]  # fmt: skip
    assert table.loc[SEGMENTED].tolist() == ["3.69 ± 0.10", "255,000", *["–"] * 5]
    assert table.loc[FULL].tolist()[:2] == ["3.58 ± 0.10", "1,024,000"]
    assert table.loc["v1"].tolist()[2:] == ["window", "−0.130 ± 0.010", "–", "–", "no"]
    assert table.loc["v3"].tolist() == [
        "3.64 ± 0.10", "60,000", "window", "0.050 ± 0.010", "0.0050 ± 0.0010", "5.0 ± 1.0", "yes",
    ]  # fmt: skip


def test_state_bytes_are_shown_by_item() -> None:
    table = tables.versions_table(FIGURES, tables.STATE_BYTES)
    assert table.loc["v3"].tolist() == ["0", "56,000", "4,000", "60,000"]
    assert table.loc[FULL].tolist() == ["1,024,000", "–", "–", "1,024,000"]


def test_perplexity_and_other_gains_name_their_metrics() -> None:
    perplexity = tables.versions_table(FIGURES, tables.PERPLEXITY).T
    assert perplexity.loc["documents", "v3"] == "38.00 ± 0.50"
    assert perplexity.loc["tokens of that window", "v3"] == "64"
    assert perplexity.loc["documents", FULL] == "36"
    gains = tables.versions_table(FIGURES, tables.OTHER_GAINS).T
    assert SEGMENTED not in gains
    assert gains["v3"].tolist() == [
        "–", "0.020 ± 0.010 ~", "0.0100 ± 0.0010", "0.10 ± 0.20 ~", "−0.051 ± 0.010", "50 ~",
        "148,615",
    ]  # fmt: skip


def test_versions_table_without_a_base() -> None:
    assert list(tables.versions_table({"v3": FIGURES["v3"]}, tables.HEADLINE).index) == ["v3"]


def test_other_windows_have_their_own_rows(results: Results) -> None:
    assert tables.other_windows_table(results).empty
    tree = METRICS_BY_VERSION["v3"] | {"at_window_256": version_metrics(37.0, 0.03, 0.004)}
    table = tables.other_windows_table(replace(results, metrics=results.metrics | {"v3": tree}))
    assert table.loc["v3, window 256", "gain over the baseline"] == "0.030 ± 0.010"
    assert table.loc["v3, window 256", "baseline"] == "window"


def test_window_curve_is_ordered_by_state_bytes() -> None:
    table = tables.window_curve_table(FIGURES["base"])
    assert list(table.index) == ["16", "64", "256", "full"]
    assert table["state bytes"].tolist() == ["20,000", "68,000", "260,000", "1,024,000"]
    assert table.loc["64", "nats per token"] == "3.65 ± 0.10"


def test_research_log_table_compares_with_the_first() -> None:
    two = tables.research_log_table({name: FIGURES[name] for name in ("v1", "v2")})
    assert list(two.columns) == ["v1", "v2", "change"]
    assert two.loc["distillation epochs"].tolist() == ["10", "25", "+15"]
    assert two.loc["perplexity gap (distillation)"].tolist() == ["12", "6", "−50.0 %"]
    assert two.loc["long-context perplexity after"].tolist() == ["44", "40", "−9.1 %"]
    assert "distillation loss (test)" not in two.index
    three = tables.research_log_table({name: FIGURES[name] for name in ("v1", "v2", "v3")})
    assert list(three.columns) == ["v1", "v2", "v3", "v2 against v1", "v3 against v1"]
    assert three.loc["distillation epochs", "v3"] == "–"
    assert list(tables.research_log_table({"v1": FIGURES["v1"]}).columns) == ["v1"]


def test_double_shift_table_has_models_before_and_after() -> None:
    table = tables.double_shift_table(FIGURES, ["v1"])
    assert list(table.index) == ["untouched base", "v1 distilled", "v1 finetuned"]
    assert table.loc["untouched base"].tolist() == ["40", "12,000"]


def test_block_table_has_all_metrics_of_a_name() -> None:
    table = tables.block_table(FIGURES, "distill")
    assert table.columns.tolist() == ["v1", "v2"]
    assert table.loc["ppl_gap"].tolist() == ["12", "6"]
    assert tables.block_table(FIGURES, "alpha").loc["layer0", "v3"] == "0.1520"
    assert tables.block_table(FIGURES, "unknown").empty


def test_retrieval_table_shows_shares_in_per_cent() -> None:
    table = tables.retrieval_table(FIGURES, "passkey")
    assert table.loc["v3", "exact, %"] == "92.50"
    assert table.loc["v3", "exact, memory off, %"] == "0"
    assert table.loc["base", "exact, full attention, %"] == "75"
    assert table.loc["v3", "gain over memory off, nats"] == "0.10 ± 0.20 ~"
    assert tables.retrieval_table(FIGURES, "recall").empty


def test_version_curves_have_a_column_a_version(results: Results) -> None:
    table = tables.version_curves_table(results.curves, "ppl_by_distance")
    assert list(table.columns) == [SEGMENTED, FULL, "v1", "v2", "v3"]
    assert list(table.index) == ["0", "64", "256"]
    assert table.loc["64", SEGMENTED] == "40.0 ± 2.0"
    recall = tables.version_curves_table(results.curves, "recall_exact_by_pairs")
    assert recall["v3"].tolist() == ["25", "1.562"]  # per cent
    assert tables.version_curves_table(results.curves, "unknown").empty


def test_settings_table_has_all_settings() -> None:
    table = tables.settings_table(SETUP.versions)
    assert table.loc["distill.epochs"].tolist() == ["10", "25", "–"]
    assert table.loc["finetune.lr"].tolist() == ["0.0001", "0.0001", "0.01"]
    assert table.loc["layer.layers"].tolist() == ["0", "0", "0"]
    assert table.loc["control", "v3"] == "yes"
    assert table.loc["finetune.patience", "v1"] == "null"


def test_cost_table_has_a_row_a_version_and_length() -> None:
    table = tables.cost_table(costs("base", "v1"))
    assert list(table.index)[:2] == ["base, 1,024 tokens", "base, 16,384 tokens"]
    assert table.loc["v1, 16,384 tokens"].tolist() == ["32,768", "1,001", "14"]


def test_time_table_ends_with_the_sum() -> None:
    table = tables.time_table(
        {
            "v1-distill": {"seconds": 10.0, "startup": 2.0, "seconds_per_epoch": 1.25},
            "v1-evaluate": {"seconds": 5.0, "startup": 1.0},
        }
    )
    assert table.loc["v1-distill"].tolist() == ["10.0", "2.0", "1.2"]
    assert table.loc["sum"].tolist() == ["15.0", "3.0", "–"]


def test_text_frame_keeps_order_and_shows_missing_cells() -> None:
    table = tables.text_frame({"b": {"y": 1}, "a": {"x": 2.5, "y": None}})
    expected = pd.DataFrame({"y": ["1", "–"], "x": ["–", "2.500"]}, index=["b", "a"], dtype=object)
    pd.testing.assert_frame_equal(table, expected)
