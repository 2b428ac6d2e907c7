"""The whole report."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from infini.report.page import Report, ReportPlot, render_html, render_markdown
from infini.report.results import Results, read_results
from infini.report.sections import build_report
from report.toy_results import SETUP, toy_results

RUN = {"commit": "0123", "hardware": "2 cores"}
TIMES = {"v1-distill": {"seconds": 10.0, "startup": 2.0}}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    return toy_results(tmp_path, monkeypatch)


def titles(report: Report) -> list[str]:
    return [section.title for section in report.sections]


def plot_names(report: Report) -> set[str]:
    parts = [part for section in report.sections for part in section.parts]
    return {part.name for part in parts if isinstance(part, ReportPlot)}


def test_report_has_all_sections_and_plots(results: Results) -> None:
    report = build_report(results, RUN, TIMES)
    assert titles(report) == [
        "All versions", "The research log's table", "By position in the document", "Retrieval",
        "Gates and α", "Costs", "Training", "Settings", "Provenance", "This run",
    ]  # fmt: skip
    assert plot_names(report) == {
        "state_bytes", "segments", "distance", "retrieval", "gates", "costs", "distill", "finetune",
    }  # fmt: skip
    assert [line.split("**")[1] for line, _ in report.verdicts] == [
        "v3 beats both", "v1 does not beat both", "v2 does not beat both",
    ]  # fmt: skip
    assert [yes for _, yes in report.verdicts] == [True, False, False]


def test_what_differs_from_run_to_run_is_on_the_page_only(results: Results) -> None:
    report = build_report(results, RUN, TIMES)
    text, page = render_markdown(report, "plots"), render_html(report)
    assert "2 cores" not in text
    assert "2 cores" in page
    assert "v1-distill" in page
    assert "12.5 %" in text  # padding


def test_report_without_any_file_names_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = Path("reports/dvc.yaml")
    pipeline.parent.mkdir()
    pipeline.touch()
    report = build_report(read_results(SETUP), RUN, {})
    assert report.verdicts == []
    assert plot_names(report) == set()
    text = render_markdown(report, "plots")
    for line in (
        "No metrics of base, v1, v2, v3: `dvc repro` writes it.",
        "No `reports/curves/`: `dvc repro` writes it.",
        "No `reports/costs.csv`: `dvc repro reports/dvc.yaml` writes it.",
        "No `reports/prepared.json`: `dvc repro prepare_data` writes it.",
    ):
        assert line in text
    assert "Retrieval" not in titles(report)
    pipeline.unlink()  # as in a study
    assert "Costs" not in titles(build_report(read_results(SETUP), RUN, {}))


def test_report_of_adapters_alone_has_no_research_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = toy_results(tmp_path, monkeypatch)
    assert "The research log's table" in titles(build_report(results, RUN, {}))
    adapters = read_results(replace(SETUP, replacements={}))
    assert "The research log's table" not in titles(build_report(adapters, RUN, {}))


def test_report_notes_stale_costs(results: Results) -> None:
    note = "Settings have changed since; `dvc repro reports/dvc.yaml` measures again."
    (costs,) = [s for s in build_report(results, RUN, {}).sections if s.title == "Costs"]
    assert note not in costs.parts
    stale = build_report(results, RUN, {}, costs_are_stale=True)
    (costs,) = [section for section in stale.sections if section.title == "Costs"]
    assert costs.parts[0] == note


def test_a_version_without_metrics_is_named(results: Results) -> None:
    metrics = {name: tree for name, tree in results.metrics.items() if name != "v2"}
    report = build_report(replace(results, metrics=metrics), RUN, {})
    assert "No metrics of v2: `dvc repro` writes it." in report.sections[0].parts


def test_curves_without_retrieval_leave_their_plots_out(results: Results) -> None:
    def without(table: pd.DataFrame) -> pd.DataFrame:
        return table[~table["curve"].str.contains("passkey|gate")]

    curves = {name: without(table) for name, table in results.curves.items()}
    report = build_report(replace(results, curves=curves), RUN, {})
    assert not plot_names(report) & {"retrieval", "gates"}
