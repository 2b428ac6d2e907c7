"""Tables are pure functions of the results: their cells are values until they are printed."""

import pandas as pd
import pytest

from infini.evaluation.estimates import Estimate, estimates_of
from infini.report import tables
from infini.report.cells import Change, show
from infini.training.config import Audit
from report.toy_results import (
    AUDITS,
    BASE,
    CURVE,
    FALLS,
    FIGURES,
    RIGHT,
    SETUP,
    costs,
    losses,
    version,
)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(show)


def test_v1_v2_change_as_the_logs_table_has_it() -> None:
    versus = tables.versus({v: FIGURES[v] for v in ("v1", "v2")}, tables.LOG_ROWS)
    assert list(versus.columns) == ["v1", "v2", "change"]
    assert shown(versus).loc["Distillation epochs"].tolist() == ["10", "10", "+0"]
    gap = versus.loc["PPL gap (distillation)"]
    assert gap.tolist() == [Estimate(20.0), Estimate(10.0), Change(Estimate(20.0), Estimate(10.0))]
    assert gap.map(show).tolist() == ["20.0000", "10.0000", "−50.0 %"]
    assert "Original PPL" not in versus.index  # no version has it


def test_a_third_version_gets_its_own_columns() -> None:
    three = {"v1": FIGURES["v1"], "v2": FIGURES["v2"], "v9": FIGURES["v2"]}
    columns = tables.versus(three, tables.LOG_ROWS).columns
    assert list(columns) == ["v1", "v2", "v2 vs v1", "v9", "v9 vs v1"]


def test_one_version_has_no_change() -> None:
    assert list(tables.versus({"v1": FIGURES["v1"]}, tables.LOG_ROWS).columns) == ["v1"]


def test_the_headline_says_what_pays() -> None:
    table = shown(tables.all_versions(FIGURES, tables.HEADLINE))
    rows = {
        "base, blind segments": ["3.69 ± 0.10", "255,000", *"––––"],
        "base, full attention": ["3.58 ± 0.10", "1,024,000", *"––––"],
        "v1": ["3.78 ± 0.10", "60,000", "−0.130 ± 0.010", "–", "–", "no"],
        "v2": ["3.64 ± 0.10", "60,000", "0.050 ± 0.010", "0.0050 ± 0.0010", "5.0 ± 1.0", "yes"],
    }
    assert table.T.to_dict("list") == rows
    assert list(table) == list(tables.HEADLINE)


def test_a_gain_or_worth_within_two_errors_is_marked() -> None:
    found = {**FIGURES, "v2": estimates_of(version(38.0, 40.0, 0.019, 0.0019))}
    table = shown(tables.all_versions(found, tables.HEADLINE))
    assert table.loc["v2"].tolist()[2:4] == ["0.019 ± 0.010 ~", "0.0019 ± 0.0010 ~"]


def test_a_version_pays_if_it_does_with_every_seed() -> None:
    found = {**FIGURES, "v2": {**FIGURES["v2"], "pays": Estimate(0.5, 0.7)}}
    assert shown(tables.all_versions(found, tables.HEADLINE)).loc["v2", "pays"] == "no"


def test_bytes_are_itemised() -> None:
    table = shown(tables.all_versions(FIGURES, tables.BYTES))
    assert list(table) == ["exact keys and values", "pending copies", "memory", "total"]
    assert table.loc["v1"].tolist() == ["0", "56,000", "4,000", "60,000"]
    assert table.loc["base, full attention"].tolist() == ["1,024,000", "–", "–", "1,024,000"]
    assert table.loc["base, blind segments"].tolist() == ["255,000", "0", "0", "255,000"]


def test_perplexities_are_beside_their_opponents() -> None:
    table = shown(tables.all_versions(FIGURES, tables.PERPLEXITY))
    assert list(table.index) == ["base, blind segments", "base, full attention", "v1", "v2"]
    assert table["documents"].tolist() == ["40.0000", "36.0000", "44.00 ± 0.50", "38.00 ± 0.50"]
    assert table.loc["v2", "that window, tokens"] == "64"
    assert table.loc["v2", "base, window of equal bytes"] == "39.9483"  # 38 e^0.05
    assert table.loc["v2", "its control"] == "38.1905"  # 38 e^0.005
    assert table.loc["v1", "its control"] == "–"
    assert table.loc["v2", "another document's memory"] == "39.0000"
    assert table.loc["base, full attention", "bits per byte, documents"] == "1.1000"


def test_older_comparisons_are_named_as_such() -> None:
    table = shown(tables.all_versions(FIGURES, tables.DIFFERENCES))
    assert list(table.index) == ["v1", "v2"]
    assert table.loc["v2", "gain over memory kept empty"] == "0.051 ± 0.010"
    assert table.loc["v1", "gain over memory kept empty"] == "0.000 ± 0.010 ~"
    assert table.loc["v2", "passkey: gain over memory kept empty"] == "0.10 ± 0.20 ~"
    assert table.loc["v2", "against blind segments: nats above"] == "−0.051 ± 0.010"
    assert table.loc["v2", "against blind segments: context recovery, %"] == "49 ± 10"
    assert table.loc["v1", "parameters added"] == "–"


def test_other_windows_have_a_row_each() -> None:
    assert tables.other_windows(FIGURES).empty
    other = version(37.0, 40.0, 0.019, 0.005)
    found = {**FIGURES, "v5": estimates_of({**BASE, "at": {"w256": other, "w64": other}})}
    table = shown(tables.other_windows(found))
    assert list(table.index) == ["v5, window 64", "v5, window 256"]
    assert list(table) == list(tables.HEADLINE)
    assert table.loc["v5, window 256"].tolist()[1:4] == [
        "60,000", "0.019 ± 0.010 ~", "0.0050 ± 0.0010",
    ]  # fmt: skip


def test_the_window_curve_has_a_row_a_window() -> None:
    table = shown(tables.windows(FIGURES["base"], CURVE))
    assert list(table.index) == ["16", "64", "256", "full"]
    assert table.loc["64"].tolist() == ["68,000", "3.65 ± 0.10", "38.4747", "–"]
    assert table.loc["full"].tolist() == ["1,024,000", "3.58 ± 0.10", "36.0000", "1.1000"]


def test_a_block_has_the_versions_that_have_it_and_their_spread_over_seeds() -> None:
    tree = version(38.0, 40.0, 0.05) | {"spread": {"distill": {"ppl_gap": 2.5}}}
    found = {"base": FIGURES["base"], "v1": FIGURES["v1"], "v2": estimates_of(tree)}
    found["v3"] = estimates_of({"alpha": {"layer0": 0.152}})
    table = tables.block(found, "distill")
    assert list(table.index) == ["epochs", "ppl_distilled", "ppl_gap"]
    assert list(table.columns) == ["v1", "v2"]
    assert shown(table).loc["ppl_gap"].tolist() == ["20.0000", "10.0 ± 2.5"]
    assert tables.block(found, "alpha").loc["layer0", "v3"] == Estimate(0.152)
    assert tables.block(found, "nothing").empty


def test_retrieval_has_a_row_a_version() -> None:
    table = shown(tables.retrieval(FIGURES, "passkey"))
    assert list(table.index) == ["base", "v1", "v2"]
    assert table.loc["v1", "memory's gain"] == "0.10 ± 0.20 ~"
    assert table.loc["base", "exact"] == "–"


@pytest.mark.parametrize(("place", "rows"), [("segment", ["0", "1"]), ("distance", ["64", "256"])])
def test_perplexity_by_place(place: str, rows: list[str]) -> None:
    found = {"base": losses(segmented=3.0, full=2.0), "v1": losses(documents=1.0, control=9.0)}
    table = tables.perplexity_by(found, place)
    assert list(table.index) == rows
    assert list(table.columns) == ["base, blind segments", "base, full attention", "v1"]
    assert [e.value for e in table.iloc[0]] == pytest.approx([20.0855, 7.38906, 2.71828], rel=1e-5)
    assert all(e.error > 0 for e in table.to_numpy().flat)


def test_settings_that_differ_are_marked() -> None:
    table, differ = tables.settings(SETUP.versions)
    assert shown(table).loc["distill.patience"].tolist() == ["unset", "2", "–"]
    assert shown(table).loc["distill.hold_out"].tolist() == ["no", "yes", "–"]
    assert shown(table).loc["finetune.lr"].tolist() == ["0.0001", "1e-05", "0.01"]
    assert table.loc["layer.layers"].tolist() == ["0", "0", "0"]
    assert table.loc["finetune.epochs"].tolist() == [10, 50, 5]
    assert {"distill.patience", "layer.update", "finetune.lr"} <= differ
    assert "layer.layers" not in differ
    assert "alpha" not in differ  # one version alone has it
    assert table.loc["alpha"].tolist() == [None, None, 0.0]


def test_double_shift_has_every_replacement_before_and_after() -> None:
    tree = {"finetune": {"double_shift_next_before": 90.0, "double_shift_before": 8000.0}}
    undistilled = estimates_of({**tree, **BASE})
    distilled = estimates_of({**tree, **BASE, "distill": {"epochs": 9}})
    found = {"base": FIGURES["base"], "v1": distilled, "v4": undistilled}
    labels = list(tables.double_shift(found, ["v4"]).index)
    assert labels == ["untouched base", "v4 untrained", "v4 finetuned"]
    table = tables.double_shift(found, ["v1"])
    assert list(table.index) == ["untouched base", "v1 distilled", "v1 finetuned"]
    assert [[e.value for e in row] for row in table.to_numpy()] == [
        [40.0, 12000.0],
        [90.0, 8000.0],
        [40.0, 12000.0],
    ]


def test_audits_have_a_row_each_under_their_question() -> None:
    table = tables.audits({"twice": FALLS, "right": RIGHT}, AUDITS)
    assert list(table.index) == ["Twice?", "Right?"]
    row = shown(table).loc["Twice?"]
    assert row["version"] == "v2"
    assert row["next token, before"] == "90.0000"
    assert row["after "] == "600"
    assert row["after, memory kept empty"] == "–"
    noise = estimates_of({"vs_version": {"nats": 0.001, "nats_se": 0.01}})
    table = tables.audits({"x": noise}, {"x": Audit(of="v2", question="?")})
    assert shown(table).loc["?", "nats above the version"] == "0.001 ± 0.010 ~"


def test_times_are_summed() -> None:
    taken = {
        "v1-distill": {"seconds": 12.25, "startup": 4.0, "seconds_per_epoch": 1.9},
        "v1-evaluate": {"seconds": 1000.0, "startup": 5.0},
    }
    table = shown(tables.times(taken))
    assert table.loc["v1-distill"].tolist() == ["12.2", "4.0", "1.90"]
    assert table.loc["v1-evaluate"].tolist() == ["1,000.0", "5.0", "–"]
    assert table.loc["sum"].tolist() == ["1,012.2", "9.0", "–"]


def test_what_was_prepared_is_counted() -> None:
    table = tables.prepared({"train": {"texts": 1200, "documents": 5}, "test": {"texts": 3}})
    assert shown(table).to_numpy().tolist() == [["1,200", "5"], ["3", "–"]]


def test_listed_has_a_row_a_label() -> None:
    table = tables.listed({"python": "3.11", "commit": ""})
    assert table[""].to_dict() == {"python": "3.11", "commit": ""}


def test_costs_have_a_row_a_length() -> None:
    table = tables.costs(costs("base", "v1"))
    assert list(table.index) == ["1,024", "16,384"]
    assert list(table.columns) == [
        f"{version}, {figure}"
        for figure in ("bytes", "tokens/s", "peak MiB")
        for version in ("base", "v1")
    ]
    assert shown(table).iloc[1].tolist() == ["16,384", "32,768", "1,000", "1,001", "12", "14"]
