"""The report's two forms, and its page in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from selenium import webdriver

from browser import browser, show
from infini.report.page import (
    Report,
    ReportPlot,
    ReportSection,
    ReportTable,
    render_html,
    render_markdown,
    save_plots,
)

TABLE = ReportTable(
    pd.DataFrame(
        {"nats": ["3.64 ± 0.10", "–", "−0.5", "1,024"], "kind": ["b", "a", "d", "c"]},
        index=["v1", "v2", "v3", "<b>|v4"],
        dtype=object,
    ),
    "version",
    "Headline & more",
)


def plot(name: str = "bytes") -> ReportPlot:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], color="black", label="line")
    axes.fill_between([1, 2], [3, 4], [5, 6], color="black")
    axes.legend()
    return ReportPlot(name, figure, 'A "plot" of bytes')


def report() -> Report:
    return Report(
        "Title",
        [("**v1 beats both**: yes.", True), ("**v2 does not beat both**: <i>no</i>.", False)],
        [
            ReportSection("All versions", ["Text with `code`.", TABLE, plot("one"), plot("two")]),
            ReportSection("This run", ["of today"], page_only=True),
        ],
    )


def test_markdown_has_verdicts_tables_and_plots(tmp_path: Path) -> None:
    text = render_markdown(report(), "plots")
    assert text.startswith("# Title\n")
    assert "\n- **v1 beats both**: yes.\n" in text
    assert "\n## All versions\n\nText with `code`.\n\n**Headline & more**\n\n| version" in text
    assert '![A "plot" of bytes](plots/one.svg)' in text
    assert "of today" not in text
    save_plots(report(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"one.svg", "two.svg"}


def test_markdown_cells_stay_in_their_cells() -> None:
    row = next(line for line in TABLE.markdown().splitlines() if "v4" in line)
    assert row.startswith("| &lt;b>\\|v4 ")


def test_page_needs_no_other_file() -> None:
    page = render_html(report())
    assert "of today" in page
    assert '<li class="yes"><strong>v1 beats both</strong>' in page
    assert "&lt;i&gt;no&lt;/i&gt;" in page
    assert "&lt;b&gt;|v4" in page
    assert "<caption>Headline &amp; more</caption>" in page
    assert "<th>version</th>" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert not re.search(r"@import|url\((?!#)", page)


def test_page_is_the_same_bytes_again() -> None:
    assert render_html(report()) == render_html(report())
    assert plot().svg() == plot().svg()
    assert "<dc:date>" not in plot().svg()


def test_inline_plots_have_unique_ids_and_the_texts_colour() -> None:
    page = render_html(report())
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    assert "#000000" not in page
    assert 'aria-label="A &#34;plot&#34; of bytes"' in page


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(render_html(report()))
    with browser() as page:
        show(page, file.as_uri(), 1000)
        yield page


def test_page_runs_without_errors(opened: webdriver.Chrome) -> None:
    assert opened.get_log("browser") == []
    assert opened.execute_script("return document.querySelectorAll('svg path').length") > 10
    width = "return document.documentElement.scrollWidth <= innerWidth"
    assert opened.execute_script(width)


def test_page_sorts_a_column_by_its_values(opened: webdriver.Chrome) -> None:
    def click(column: int) -> list[str]:
        return opened.execute_script(
            "document.querySelectorAll('thead th')[arguments[0]].click();"
            "return [...document.querySelectorAll('tbody tr')].map(r => r.cells[0].innerText)",
            column,
        )

    assert click(2) == ["v2", "v1", "<b>|v4", "v3"]
    assert click(2) == ["v3", "<b>|v4", "v1", "v2"]
    assert click(1) == ["v3", "v1", "<b>|v4", "v2"]  # a missing value is the last
    assert click(1) == ["<b>|v4", "v1", "v3", "v2"]
