"""Tables are pure functions of the results: their cells are values until they are printed."""

import pandas as pd
import pytest

from infini.evaluation.estimates import Estimate, estimates_of
from infini.report import tables
from infini.report.cells import Change, show
from infini.training.config import Audit
from report.toy_results import AUDITS, BASE, FALLS, FIGURES, RIGHT, SETUP, costs, losses, version


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


def test_all_versions_mark_noise_and_show_the_ceiling() -> None:
    table = shown(tables.all_versions(FIGURES))
    assert list(table.index) == ["base", "base, full attention", "v1", "v2"]
    assert table.loc["base, full attention", "PPL by segments"] == "36.0000"
    assert table.loc["base, full attention", "bits per byte"] == "1.1000"
    assert table.loc["v2", "PPL by segments"] == "38.00 ± 0.50"
    assert table.loc["v2", "memory's gain, nats"] == "0.051 ± 0.010"
    assert table.loc["v1", "memory's gain, nats"] == "0.000 ± 0.010 ~"
    assert table.loc["v2", "passkey gain, nats"] == "0.10 ± 0.20 ~"
    assert table.loc["v1", "parameters added"] == "–"


def test_a_block_has_the_versions_that_have_it_and_their_spread_over_seeds() -> None:
    tree = version(38.0, 40.0, -0.051, 0.051, 0.49) | {"spread": {"distill": {"ppl_gap": 2.5}}}
    found = {"base": FIGURES["base"], "v1": FIGURES["v1"], "v2": estimates_of(tree)}
    found["v3"] = estimates_of({"alpha": {"layer0": 0.152}})
    table = tables.block(found, "distill")
    assert list(table.index) == ["epochs", "ppl_gap"]
    assert list(table.columns) == ["v1", "v2"]
    assert shown(table).loc["ppl_gap"].tolist() == ["20.0000", "10.0 ± 2.5"]
    assert tables.block(found, "alpha").loc["layer0", "v3"] == Estimate(0.152)
    assert tables.block(found, "nothing").empty


def test_retrieval_has_a_row_a_version() -> None:
    table = shown(tables.retrieval(FIGURES))
    assert list(table.index) == ["base", "v1", "v2"]
    assert table.loc["v1", "memory's gain"] == "0.10 ± 0.20 ~"
    assert table.loc["base", "exact"] == "–"


@pytest.mark.parametrize(("place", "rows"), [("segment", ["0", "1"]), ("distance", ["64", "256"])])
def test_perplexity_by_place(place: str, rows: list[str]) -> None:
    found = {"base": losses(segmented=3.0, sliding=2.0), "v1": losses(segmented=1.0)}
    table = tables.perplexity_by(found, place)
    assert list(table.index) == rows
    assert list(table.columns) == ["base", "base, full attention", "v1"]
    assert [e.value for e in table.iloc[0]] == pytest.approx([20.0855, 7.38906, 2.71828], rel=1e-5)
    assert all(e.error > 0 for e in table.to_numpy().flat)


def test_settings_that_differ_are_marked() -> None:
    table, differ = tables.settings(SETUP.versions)
    assert shown(table).loc["distill.patience"].tolist() == ["none", "2", "–"]
    assert shown(table).loc["distill.hold_out"].tolist() == ["no", "yes", "–"]
    assert shown(table).loc["finetune.lr"].tolist() == ["0.0001", "1e-05", "0.01"]
    assert table.loc["layer.layers"].tolist() == ["0", "0", "0"]
    assert table.loc["finetune.epochs"].tolist() == [10, 50, 5]
    assert {"distill.patience", "layer.update", "finetune.lr"} <= differ
    assert "layer.position" not in differ
    assert "alpha" not in differ  # one version alone has it
    assert table.loc["alpha"].tolist() == [None, None, 0.0]


def test_double_shift_has_every_replacement_before_and_after() -> None:
    tree = {"finetune": {"double_shift_next_before": 90.0, "double_shift_before": 8000.0}}
    found = {"base": FIGURES["base"], "v1": estimates_of({**tree, **BASE})}
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
