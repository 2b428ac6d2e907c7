"""The report's two forms: their text, and the page in a real browser."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.common.by import By

from browser import browser, show
from infini.evaluation.estimates import Estimate
from infini.report.cells import Change
from infini.report.page import Card, Drawing, Report, Section, Table, html, markdown, save_drawings

VALUES = [
    Estimate(32.4613, 0.3512),
    Change(Estimate(20.0), Estimate(18.94)),
    1234.5,
    None,
    Change(Estimate(10), Estimate(13)),
]
PRINTED = ["32.46 ± 0.35", "−5.3 %", "1,234.5", "–", "+3"]
KEYS = [32.4613, -5.3, 1234.5, None, 3.0]
HOSTILE = '"><script src="x"></script><b onload=y>'


def drawing(name: str, words: str = "<one> & other") -> Drawing:
    figure = Figure(figsize=(6, 3), layout="constrained")
    left, right = figure.subplots(ncols=2)
    left.plot([0, 1, 2], [1, 3, 2], label=words)
    left.plot([1], [2], "o", color="black", gid=f"dot-{name}")
    left.legend()
    mesh = right.pcolormesh(np.arange(12.0).reshape(3, 4), cmap="RdBu")
    figure.colorbar(mesh)
    return Drawing(name, figure, f"A line & a map: {name}")


def wide() -> pd.DataFrame:
    columns = {f"column {i}": VALUES for i in range(12)}
    return pd.DataFrame(columns, index=list("abcde"), dtype=object)


def report() -> Report:
    table = Table(wide(), "row", "A wide table", frozenset({"b"}))
    this_run = Table(wide(), "row", "Of this run")
    return Report(
        "Toy <report>",
        ["**v1** is 3 < 4.", "`code` & more"],
        [Card("v1", "22 ± 3 %", "recovered"), Card("v2", "1 | 2", "other")],
        [
            Section("First things", ["A paragraph with **weight**.", ["one", "two"], table]),
            Section("Drawings", [drawing("line"), drawing("other")]),
            Section("Folded", [Table(wide(), "row", "Another")], folded=True),
            Section("Only here", [this_run], page_only=True),
        ],
    )


def hostile() -> Report:
    """Markup wherever a text can come from params.yaml or from a corpus."""
    cells = pd.DataFrame({HOSTILE: [HOSTILE, None]}, index=[HOSTILE, "row"], dtype=object)
    map_of_it = drawing("plot", HOSTILE)
    return Report(
        HOSTILE,
        [HOSTILE],
        [Card(HOSTILE, HOSTILE, HOSTILE)],
        [
            Section(
                HOSTILE,
                [
                    HOSTILE,
                    [HOSTILE],
                    Table(cells, HOSTILE, HOSTILE, frozenset({HOSTILE})),
                    Drawing(map_of_it.name, map_of_it.figure, HOSTILE),
                ],
            )
        ],
    )


class Elements(HTMLParser):
    """Every element of a page, and the cells' text with what they are sorted by."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, str | None]] = []
        self.open = ""  # the tag that text is directly behind
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "td":
            self.cells.append((data, self.elements[-1][1]["data-sort"]))


def test_markdown_has_every_part(tmp_path: Path) -> None:
    text = markdown(report(), "plots")
    for part in ("# Toy <report>", "- **v1** is 3 < 4.", "## First things", "A paragraph", "- two"):
        assert part in text
    assert "![A line & a map: line](plots/line.svg)" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines.count(["row", *(f"column {i}" for i in range(12))]) == 2  # not that of the run
    for label, printed in zip("acde", [PRINTED[0], *PRINTED[2:]], strict=True):
        assert lines.count([label, *[printed] * 12]) == 2
    assert lines.count(["**b**", *[PRINTED[1]] * 12]) == 1  # marked in the first table alone
    assert lines.count(["b", *[PRINTED[1]] * 12]) == 1
    save_drawings(report(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["line.svg", "other.svg"]


def test_what_is_of_the_run_is_on_the_page_alone() -> None:
    assert "Only here" not in markdown(report(), "plots")
    assert '<section id="only-here">' in html(report())


def test_texts_stay_in_their_cells() -> None:
    cells = pd.DataFrame({"x | y": ["1 | 2"]}, index=["a\nb | c"], dtype=object)
    for marked in (frozenset(), frozenset({"a\nb | c"})):
        lines = Table(cells, "row", "caption", marked).markdown().splitlines()
        assert len(lines) == 3
        assert r"1 \| 2" in lines[2]
        assert r"a b \| c" in lines[2]
        assert r"x \| y" in lines[0]


def test_the_page_is_escaped_and_needs_nothing_else() -> None:
    page = html(report())
    assert "Toy &lt;report&gt;" in page
    assert "<strong>v1</strong> is 3 &lt; 4." in page
    assert "&lt;one&gt;" in page
    assert "#000000" not in page
    for made in (report(), hostile()):
        page = html(made)
        for needs in ("@import", "url(http", 'href="http'):
            assert needs not in page
        elements = Elements(page).elements
        assert [attributes for tag, attributes in elements if tag == "script"] == [{}]  # our own
        assert not [
            tag
            for tag, attributes in elements
            if "src" in attributes or any(name.startswith("on") for name in attributes)
        ]
        assert not {"img", "iframe", "object", "base"} & {tag for tag, _ in elements}


def test_hostile_texts_are_shown_and_none_is_markup() -> None:
    page = html(hostile())
    assert "<script src" not in page
    assert "<b onload" not in page
    # title twice, summary, card 3, link, heading, paragraph, item, caption twice, corner,
    # column, row, cell and its key, alt twice, and the plot's legend
    assert page.count("&lt;script src=") == 20


def test_cells_are_printed_and_sorted_by_their_values() -> None:
    cells = Elements(html(report())).cells
    assert len(cells) == 3 * 5 * 12
    for printed, number in zip(PRINTED, KEYS, strict=True):
        keys = {key for text, key in cells if text == printed}
        assert len(keys) == 1
        key = keys.pop()
        assert key == "" if number is None else float(key or "") == pytest.approx(number)


def test_the_same_report_is_the_same_page() -> None:
    assert html(report()) == html(report())


def test_ids_are_unique() -> None:
    page = html(report())
    ids = pd.Series([part.partition('"')[0] for part in page.split(' id="')[1:]])
    assert ids.is_unique
    used = {part.partition(")")[0] for part in page.split("url(#")[1:]}
    assert used <= set(ids)


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


@pytest.mark.parametrize("width", [390, 1280])
def test_what_names_a_row_and_a_table_stays_in_sight(
    page: tuple[webdriver.Chrome, str], width: int
) -> None:
    driver, address = page
    show(driver, address, width)
    before, after, behind = driver.execute_script(
        "const wide = document.querySelector('.wide');"
        "const [label, caption, cell] = ['tbody th', 'caption span', 'tbody td']"
        ".map(s => wide.querySelector(s));"
        "const left = () => [label, caption, cell].map(e => e.getBoundingClientRect().left);"
        "const at = left(); wide.scrollLeft = 300;"
        "const box = label.getBoundingClientRect();"
        "const top = document.elementFromPoint(box.right - 5, box.top + 9);"
        "return [at, left(), getComputedStyle(label).backgroundColor + (top === label)]"
    )
    assert after[:2] == before[:2]
    assert after[2] == before[2] - 300
    assert behind == "rgb(255, 255, 255)true"  # what is scrolled is under it, unseen


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


def test_what_is_black_in_a_plot_follows_the_text(page: tuple[webdriver.Chrome, str]) -> None:
    driver, address = page
    for dark in (False, True):
        show(driver, address, 1280, dark)
        text, *parts = driver.execute_script(
            "const dot = document.querySelector('[id$=dot-line] use');"
            "const words = document.querySelector('figure svg text'), of = getComputedStyle;"
            "return [of(document.body).color, of(dot).fill, of(dot).stroke, of(words).fill]"
        )
        assert parts == [text] * 3


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
