"""Facts retrieved, by place: against means by hand."""

import pandas as pd

from infini.report.cells import show
from infini.report.retrieval import exact_by
from report.toy_results import passkey

CASES = {
    "base": passkey(0.0).assign(exact=0.0, exact_full=[1.0, 1.0, None, None, 1.0, 0.0, 0.0]),
    "v1": passkey(0.1),
    "v5": passkey(0.2).assign(exact=1.0),
}


def shown(table: pd.DataFrame) -> dict[str, list[str]]:
    return {str(row): [show(cell) for cell in cells] for row, cells in table.iterrows()}


def test_by_distance() -> None:
    table = exact_by(CASES, "passkey", "distance")
    assert list(table.columns) == ["base, blind segments", "base, full attention", "v1", "v5"]
    # Two keys 12 tokens back; one 524, one 1036.
    assert shown(table) == {
        "8": ["0", "100", "100", "100"],
        "512": ["0", "100", "0", "100"],
        "1,024": ["0", "–", "0", "100"],
    }


def test_by_pairs() -> None:
    table = exact_by(CASES, "recall", "pairs")
    assert shown(table) == {"4": ["0", "50", "50", "100"], "16": ["0", "0", "0", "100"]}
    assert shown(exact_by(CASES, "recall", "distance")) == {
        "64": ["0", "100", "100", "100"],
        "128": ["0", "0", "0", "100"],
    }


def test_what_no_case_tells_is_left_out() -> None:
    old = passkey(0.1).query("task == 'passkey'").drop(columns="distance")
    assert exact_by({"base": old}, "passkey", "distance").empty
    assert exact_by({"base": old}, "recall", "pairs").empty
    assert list(exact_by({"v1": old, "v5": passkey(0.1)}, "passkey", "distance")) == ["v5"]
