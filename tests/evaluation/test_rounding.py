"""Rounding of committed figures: decimal places, and stability against small changes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from infini.evaluation.rounding import (
    Digits,
    committed_text,
    round_figures,
    round_metrics,
    round_table,
    write_metrics,
    write_rounded_csv,
)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([3.457641], [3.458]),
        ([12508.7], [12510.0]),
        ([0.000131279], [0.0001313]),
        ([0.0], [0.0]),
        ([7], [7]),
        ([3.45764, 0.0632932], [3.4576, 0.0633]),
        ([31.742, 2.00905], [31.74, 2.01]),
        ([12508.7, 1873.11], [12510.0, 1870.0]),
        ([0.00533866, 0.00132778], [0.00534, 0.00133]),
        ([0.0001987, 0.0000123], [0.0002, 0.00001]),  # five decimals at most
        ([31.742, 0.2, 2.0], [31.74, 0.2, 2.0]),  # errors over texts and over seeds
        ([31.742, 0.0], [31.74, 0.0]),
        ([float("inf"), 0.1], [float("inf"), 0.1]),
    ],
)
def test_round_figures_to_the_third_digit_of_the_error(
    figures: list[Any], expected: list[Any]
) -> None:
    assert round_figures(figures, [None] * len(figures)) == expected


@pytest.mark.parametrize(
    ("figures", "committed", "expected"),
    [
        ([3.45764, 0.0633], [3.4577, 0.0633], [3.4577, 0.0633]),  # half a unit
        ([3.45764, 0.0633], [3.4575, 0.0634], [3.4576, 0.0634]),  # 1.4 units
        ([3.457641], [3.459], [3.458]),
        ([3.457641], [3.457], [3.457]),
        ([31.7501], [31.76], [31.76]),
        ([0.5], [None], [0.5]),
        ([8], [7], [8]),  # whole numbers are exact
        # Errors on both sides of 0.1, where their third digit moves
        ([3.45764, 0.09994], [3.458, 0.1], [3.458, 0.1]),
        ([3.45764, 0.09996], [3.4576, 0.0999], [3.4576, 0.0999]),
        ([9.9994], [10.0], [10.0]),
        ([9.9996], [9.999], [9.999]),
    ],
)
def test_round_figures_keeps_a_committed_figure_within_one_unit(
    figures: list[Any], committed: list[Any], expected: list[Any]
) -> None:
    assert round_figures(figures, committed) == expected


def test_round_metrics_joins_errors_of_texts_and_seeds() -> None:
    metrics = {
        "documents": {"nats": 3.45764, "nats_se": 0.0632932, "tokens": 4000},
        "gain_se": 0.123456,  # no figure of that name
        "alpha": {"layer0": 0.0123456},
        "spread": {"documents": {"nats": 0.4}, "alpha": {"layer0": 0.00123}},
    }
    assert round_metrics(metrics, {}) == {
        "documents": {"nats": 3.458, "nats_se": 0.063, "tokens": 4000},
        "gain_se": 0.1235,
        "alpha": {"layer0": 0.01235},
        "spread": {"documents": {"nats": 0.4}, "alpha": {"layer0": 0.00123}},
    }
    committed = {"documents": {"nats": 3.459, "nats_se": 0.063}, "spread": {"documents": 3}}
    assert round_metrics(metrics, committed)["documents"]["nats"] == 3.458


def test_round_table_finds_committed_rows_by_their_keys() -> None:
    table = pd.DataFrame(
        {
            "x": pd.Series([1, 2, 0.5], dtype=object),
            "series": "a",
            "value": [1.23456, 2.0, 7.77777],
            "se": [0.05, None, None],
        }
    )
    committed = pd.DataFrame(
        {"x": [2.0, 1.0], "series": "a", "value": [2.001, 1.2346], "se": [None, 0.05]}
    )
    found = round_table(table, committed, ["x", "series"], {"value": "se"})
    assert found["value"].tolist() == [1.2346, 2.001, 7.778]
    assert found["se"].tolist()[0] == 0.05
    assert found.to_csv(index=False).splitlines()[1] == "1,a,1.2346,0.05"
    assert found["se"].isna().tolist() == [False, True, True]
    other = round_table(table, committed.drop(columns="se"), ["x", "series"], {"value": "se"})
    assert other["value"].tolist() == [1.2346, 2.0, 7.778]


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_writers_compare_with_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics, table = Path("reports/a.json"), Path("reports/a.csv")
    keys = {"keys": ["epoch"]}
    write_metrics(metrics, {"nats": 3.4564})
    write_rounded_csv(table, pd.DataFrame({"epoch": [1], "loss": [3.4564]}), **keys)
    assert committed_text(metrics) is None, "no repository"
    git("init")
    assert committed_text(metrics) is None, "no commit"
    git("add", ".")
    git("commit", "-m", "figures")
    before = metrics.read_text(), table.read_text()
    assert json.loads(before[0]) == {"nats": 3.456}
    for nats, same in ((3.4566, True), (3.4572, False), (3.4551, True)):
        write_metrics(metrics, {"nats": nats})
        write_rounded_csv(table, pd.DataFrame({"epoch": [1], "loss": [nats]}), **keys)
        assert ((metrics.read_text(), table.read_text()) == before) == same
    metrics.write_text("{")
    table.write_text("")
    git("commit", "-am", "broken")
    write_metrics(metrics, {"nats": 3.4566})
    write_rounded_csv(table, pd.DataFrame({"epoch": [1], "loss": [3.4566]}), **keys)
    assert json.loads(metrics.read_text()) == {"nats": 3.457}
    folder = tmp_path / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert committed_text(metrics) is None


def test_round_figures_has_five_decimals_at_most() -> None:
    assert str(round_figures([-6.6e-09, 1.9e-08], [None, None])) == "[0.0, 0.0]"


def test_round_figures_without_errors_to_so_many_decimals() -> None:
    four = Digits(decimals=4)
    assert round_figures([0.0091823], [None], four) == [0.0092]
    assert round_figures([0.0091823], [0.0091], four) == [0.0091]
    assert round_figures([0.0091823], [0.009], four) == [0.0092]
    assert round_figures([12.345678], [None], four) == [12.35]
    assert round_figures([0.0091823, 0.000123], [None, None], four) == [
        0.00918,
        0.00012,
    ]
