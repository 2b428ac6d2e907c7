"""A report as data, and its two forms: Markdown for Git, one self-contained page for eyes."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from infini.report.cells import show, sort_key

# Black follows the page's text, in light and in dark.
INK = re.compile(r"#000000\b")
_BREAK = Markup("_<wbr>")  # where a long name may be broken


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Table:
    """Cells (see cells.py) under a caption; `marked` rows stand out."""

    cells: pd.DataFrame
    corner: str
    caption: str
    marked: frozenset[str] = frozenset()

    def markdown(self) -> str:
        """A Markdown table, the marked rows bold."""
        cells = self.cells.map(lambda cell: _in_one_cell(show(cell)))
        cells = cells.rename(index=self._bold_if_marked, columns=_in_one_cell)
        return cells.rename_axis(self.corner).to_markdown(disable_numparse=True)

    def _bold_if_marked(self, row: str) -> str:
        return f"**{_in_one_cell(row)}**" if row in self.marked else _in_one_cell(row)

    def rows(self) -> list[tuple[str, bool, list[tuple[str, str, bool]]]]:
        """Row label, whether it is marked, and each cell.

        A cell: as it is printed, what it is sorted by, whether it is words.
        """
        return [
            (
                str(row),
                row in self.marked,
                [(show(cell), sort_key(cell), isinstance(cell, str)) for cell in cells],
            )
            for row, cells in zip(self.cells.index, self.cells.to_numpy().tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Drawing:
    """A plot, and what it shows in words."""

    name: str
    figure: Figure
    alt: str

    def svg(self, *, inline: bool) -> str:
        """The same bytes for the same figure; inline: transparent, black as the page's text."""
        settings: Any = {
            "svg.fonttype": "none",
            "svg.hashsalt": self.name,
            "font.family": "sans-serif",
        }
        stream = io.StringIO()
        with matplotlib.rc_context(settings):
            self.figure.savefig(
                stream, format="svg", transparent=inline, metadata={"Date": None, "Creator": None}
            )
        text = stream.getvalue()
        if not inline:
            return text
        body = INK.sub("currentColor", text[text.index("<svg") :])
        # Ids are unique within a plot only.
        body = re.sub(r'\bid="', f'id="{self.name}-', body)
        body = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{self.name}-", body)
        size = re.search(r'viewBox="[^"]*"', body)
        assert size is not None
        label = Markup.escape(self.alt)
        opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]} role="img" '
        opening += f'aria-label="{label}">'
        return opening + body[body.index(">") + 1 :]


Part = str | list[str] | Table | Drawing


@dataclass(frozen=True)
class Section:
    """Paragraphs, bullet lists, tables and drawings, in inline Markdown."""

    title: str
    parts: list[Part]
    folded: bool = False  # at first shut
    page_only: bool = False  # of this very run: not in Git

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """The whole report; summary: sentences in inline Markdown."""

    title: str
    summary: list[str]
    cards: list[Card]
    sections: list[Section]
    stage: str = "compare_report"  # that makes it
    page: str = "reports/index.html"  # where it writes the same as a page


def kind(part: Part) -> str:
    """What a part is, for templates: paragraph, list, table or drawing."""
    return {str: "paragraph", list: "list", Table: "table", Drawing: "drawing"}[type(part)]


def html(report: Report) -> str:
    """One page that needs nothing else."""
    # an image would be fetched
    render = MarkdownIt("commonmark", {"html": False}).disable("image").renderInline
    environment = _environment(autoescape=True)
    environment.filters["breakable"] = lambda text: Markup.escape(text).replace("_", _BREAK)
    environment.filters["inline"] = lambda text: Markup(render(text))
    environment.filters["svg"] = lambda drawing: Markup(drawing.svg(inline=True))
    return environment.get_template("index.html.j2").render(report=report)


def markdown(report: Report, plots: str) -> str:
    """Markdown whose drawings are in the folder `plots`: the same bytes for the same results."""
    return _environment().get_template("compare.md.j2").render(report=report, plots=plots)


def save_drawings(report: Report, folder: Path) -> None:
    """Every drawing as <name>.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for part in section.parts:
            if isinstance(part, Drawing):
                (folder / f"{part.name}.svg").write_text(part.svg(inline=False))


def _in_one_cell(text: str) -> str:
    """Text that does not end its cell of a Markdown table."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _environment(**options: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("infini.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["kind"] = kind
    return environment
