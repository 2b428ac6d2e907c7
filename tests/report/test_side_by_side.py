"""All studies in one report, and the stage that writes it."""

import importlib
from pathlib import Path

import pandas as pd
import pytest

from infini.report.cells import show
from infini.report.page import Report, Table, html, markdown
from infini.report.side_by_side import answer, build, headline, retrieval
from report.toy_results import BASE, version
from report.toy_studies import read_with, reads, study, write_study

TOY = study({"v1": version(44.0, 44.0, -0.9), "v5": read_with(256, 0.05, 0.005)})
BARE = study({}, name="bare")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(show)


def titles(report: Report) -> list[str]:
    return [section.title for section in report.sections]


def test_a_row_a_study_version_and_window() -> None:
    table = shown(headline([TOY, BARE]))
    assert list(table.index) == [
        "toy: base, full attention",
        "toy: v1",
        "toy: v5 at window 64",
        "toy: v5 at window 256",
        "bare: base, full attention",
    ]
    assert table.loc["toy: v1"].to_dict() == {
        "pays": "no",
        "nats a token": "3.78 ± 0.10",
        "bytes": "60,000",
        "gain at equal bytes": "−0.900 ± 0.010",
        "worth": "–",
        "recovery by worth, %": "–",
        "by gain, %": "–",  # more than all of it is lost
        "seeds": "1",
        "made of": "layer replaced",
    }
    # by gain: 0.05 of log 36.5 + 0.05 − log 36; the error is a fifth
    assert table.loc["toy: v5 at window 256"].tolist()[1:] == [
        "3.60 ± 0.10",
        "88,000",
        "0.050 ± 0.010",
        "0.0050 ± 0.0010",
        "5.0 ± 1.0",
        "78 ± 16",
        "1",
        "window, matrix",
    ]
    assert table.loc["bare: base, full attention", "bytes"] == "1,024,000"


def test_what_was_retrieved_is_beside_the_empty_memory_and_full_attention() -> None:
    tree, base = reads(37.0, 0.02, 0.01), {**BASE, "passkey": {"exact_full": 0.985}}
    tree["passkey"] |= {"exact": 0.126, "exact_off": 0.0}
    tree["recall"] = {"exact": 1.0, "exact_off": 0.5}
    found = study({"base": base, "v5": tree, "v6": {**reads(37.0, 0.02, 0.01), "passkey": {}}})
    table = shown(retrieval([found, BARE]))
    assert list(table.index) == ["toy: v5"]
    assert table.loc["toy: v5"].tolist() == ["13", "0", "98", "100", "50", "–"]
    assert len(retrieval([BARE])) == 0


def test_the_report_answers_first() -> None:
    report = build([TOY, BARE])
    assert titles(report) == [
        "How to read this",
        "The studies",
        "Does the memory pay?",
        "What limits it",
        "Retrieval",
        "The research log's conclusions",
        "How to reproduce it",
    ]
    assert report.summary == [
        "toy: **it pays**, with a window of 256 v5 (gain at equal bytes 0.050 ± 0.010 nats a "
        "token, worth over its control 0.0050 ± 0.0010 nats a token).",
        "bare: **No version pays**: there is none.",
    ]
    assert [(card.label, card.value) for card in report.cards] == [
        ("toy", "Yes: v5 at window 256"),
        ("bare", "–"),
    ]
    text = markdown(report, "")
    assert "`make study STUDY=toy`" in text
    assert "pass keys in texts of 512 and 2,048 tokens, at depths 0 and 0.5; 4 and 16 codes" in text
    captions = [p.caption for s in report.sections for p in s.parts if isinstance(p, Table)]
    page = html(report)
    assert all(caption.replace("'", "&#39;") in page for caption in captions)


def test_the_best_of_several_that_pay_is_named_by_window() -> None:
    trees = {
        "v4": version(38.0, 40.0, 0.05, 0.005),
        "v5": reads(37.0, 0.06, 0.006),
        "v6": reads(37.0, 0.07, 0.007),
        "v7": reads(37.0, 0.01, 0.009),
    }
    assert answer(study(trees)) == (
        "**it pays**, by segments v4 (gain at equal bytes 0.050 ± 0.010 nats a token, worth over "
        "its control 0.0050 ± 0.0010 nats a token); with a window of 64 v5 and v6 (best v6, gain "
        "at equal bytes 0.070 ± 0.010 nats a token, worth over its control 0.0070 ± 0.0010 nats a "
        "token)."
    )


def test_where_none_pays_the_nearest_is_named() -> None:
    (card,) = build([study({"v1": version(44.0, 44.0, -0.13)})]).cards
    assert (card.value, card.note[:37]) == ("No", "nearest is v1: to pay it lacks 0.130 ")


def test_without_any_study_it_says_so() -> None:
    assert build([]).summary == ["No study was measured."]
    assert markdown(build([]), "")


def test_the_stage_writes_the_same_bytes_for_the_same_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path, {"base": BASE, "v5": read_with(256, 0.05, 0.005)})
    write_study(tmp_path / "studies/small", {"base": BASE})
    (tmp_path / "reports/compare.md").touch()
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module("stages.compare_studies").main
    main()
    file = Path("docs/findings.md")
    first = file.read_bytes()
    main()
    assert file.read_bytes() == first
    text = first.decode()
    assert "| toy/base: v5 at window 256 " in text
    assert "| small: base, full attention " in text
    assert "toy/base: [reports/compare.md](../reports/compare.md)." in text
    assert Path("reports/findings.html").read_text().startswith("<!doctype html>")
