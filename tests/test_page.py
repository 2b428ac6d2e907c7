"""The report's two forms: their text, and the page in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import browser, show
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.common.by import By

from infini.page import (
    Card,
    Drawing,
    Report,
    Section,
    Table,
    html,
    markdown,
    save_drawings,
    sort_key,
)

VALUES = ["32.46 ± 0.35", "−5.3 %", "1,234.5", "–", "+3"]


def drawing(name: str) -> Drawing:
    figure = Figure(figsize=(6, 3), layout="constrained")
    left, right = figure.subplots(ncols=2)
    left.plot([0, 1, 2], [1, 3, 2], label="<one> & other")
    left.legend()
    mesh = right.pcolormesh(np.arange(12.0).reshape(3, 4), cmap="RdBu")
    figure.colorbar(mesh)
    return Drawing(name, figure, f"A line & a map: {name}")


def report() -> Report:
    wide = pd.DataFrame({f"column {i}": VALUES for i in range(12)}, index=list("abcde"))
    table = Table(wide, "row", "A wide table", frozenset({"b"}))
    return Report(
        "Toy <report>",
        ["**v1** is 3 < 4.", "`code` & more"],
        [Card("v1", "22 ± 3 %", "recovered"), Card("v2", "1 | 2", "other")],
        [
            Section("First things", ["A paragraph with **weight**.", ["one", "two"], table]),
            Section("Drawings", [drawing("line"), drawing("other")]),
            Section("Folded", [Table(wide, "row", "Another")], folded=True),
        ],
    )


def test_markdown_has_every_part(tmp_path: Path) -> None:
    text = markdown(report(), "plots")
    for part in ("# Toy <report>", "- **v1** is 3 < 4.", "## First things", "A paragraph", "- two"):
        assert part in text
    assert "![A line & a map: line](plots/line.svg)" in text
    assert "| **b** | 1,234.5" not in text
    assert (
        next(line for line in text.splitlines() if line.startswith("| **b**")).count("−5.3") == 12
    )
    save_drawings(report(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["line.svg", "other.svg"]


def test_cells_with_bars_stay_cells() -> None:
    table = Table(pd.DataFrame({"x": ["1 | 2"]}, index=["a"]), "row", "caption")
    assert r"1 \| 2" in table.markdown()


def test_the_page_is_escaped_and_needs_nothing_else() -> None:
    page = html(report())
    assert "Toy &lt;report&gt;" in page
    assert "<strong>v1</strong> is 3 &lt; 4." in page
    assert "&lt;one&gt;" in page
    for needs in ('src="', "@import", "url(http", 'href="http'):
        assert needs not in page
    assert "#000000" not in page


def test_the_same_report_is_the_same_page() -> None:
    assert html(report()) == html(report())


def test_ids_are_unique() -> None:
    page = html(report())
    ids = pd.Series([part.partition('"')[0] for part in page.split(' id="')[1:]])
    assert ids.is_unique
    used = {part.partition(")")[0] for part in page.split("url(#")[1:]}
    assert used <= set(ids)


@pytest.mark.parametrize(
    ("cell", "number"), list(zip(VALUES, ["32.46", "-5.3", "1234.5", "", "3.0"], strict=True))
)
def test_cells_are_sorted_by_their_numbers(cell: str, number: str) -> None:
    assert sort_key(cell) == number


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[webdriver.Chrome, str]]:
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(html(report()))
    with browser() as driver:
        yield driver, file.as_uri()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_everything_is_drawn(
    page: tuple[webdriver.Chrome, str], width: int, dark: bool
) -> None:
    driver, address = page
    show(driver, address, width, dark)
    assert driver.get_log("browser") == []
    root = "document.documentElement"
    assert driver.execute_script("return window.innerWidth") == width
    assert driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => {"
        "const b = s.getBoundingClientRect(), g = s.querySelector('g').getBBox();"
        "return [b.width, b.height, g.width, g.height]})"
    )
    assert len(sizes) == 2
    assert all(side > 50 for size in sizes for side in size)


def luminance(colour: str) -> float:
    parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_light_and_dark_are_readable(page: tuple[webdriver.Chrome, str]) -> None:
    """WCAG AA: a contrast of 4.5 between text and what is behind it."""
    driver, address = page
    papers = []
    for dark in (False, True):
        show(driver, address, 1280, dark)
        colours = driver.execute_script(
            "const behind = e => { for (; e; e = e.parentElement) {"
            "const c = getComputedStyle(e).backgroundColor;"
            "if (c !== 'rgba(0, 0, 0, 0)') return c }};"
            "return ['h1', '.card span', 'nav a', 'tbody td', 'caption', 'tr.marked td']"
            ".map(s => document.querySelector(s)).map(e => [getComputedStyle(e).color, behind(e)])"
        )
        for text, paper in colours:
            high, low = sorted((luminance(text), luminance(paper)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5
        papers.append(luminance(colours[0][1]))
    assert papers[0] > 0.8 > 0.1 > papers[1]


def test_a_click_sorts_a_column(page: tuple[webdriver.Chrome, str]) -> None:
    driver, address = page
    show(driver, address, 1280)
    header = driver.find_elements(By.CSS_SELECTOR, "thead th")[1]

    def order() -> str:
        rows = driver.find_elements(By.CSS_SELECTOR, "table:first-of-type tbody tr")
        return "".join(row.find_element(By.CSS_SELECTOR, "th").text[-1] for row in rows[:5])

    seen = [order()]
    states = [header.get_attribute("aria-sort")]
    for _ in range(3):
        header.find_element(By.TAG_NAME, "button").click()
        seen.append(order())
        states.append(header.get_attribute("aria-sort"))
    assert seen == ["abcde", "beacd", "caebd", "abcde"]
    assert states == [None, "ascending", "descending", None]
