"""A report as data, and its two forms: Markdown for Git, and one self-contained HTML page."""

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

BLACK = re.compile(r"#000000\b")  # becomes the page's text colour, in light and in dark


@dataclass(frozen=True)
class ReportTable:
    """A table of text under a caption; `corner` names its rows."""

    frame: pd.DataFrame
    corner: str
    caption: str

    def markdown(self) -> str:
        """Return the table in Markdown."""
        frame = self.frame.map(_escape_cell).rename(index=_escape_cell, columns=_escape_cell)
        align = ("left", *["right"] * len(frame.columns))
        named = frame.rename_axis(self.corner)
        return named.to_markdown(disable_numparse=True, colalign=align)

    def html(self) -> Markup:
        """Return the table in HTML."""
        table = self.frame.rename_axis(columns=self.corner).to_html(border=0)
        caption = Markup("<caption>{}</caption>").format(self.caption)
        return Markup(table.replace("<thead>", f"{caption}<thead>", 1))


@dataclass(frozen=True)
class ReportPlot:
    """A plot, its file name without suffix, and a caption."""

    name: str
    figure: Figure
    caption: str

    def svg(self) -> str:
        """Return the plot as an SVG file: the same figure gives the same bytes."""
        return self._draw(transparent=False)

    def inline_svg(self) -> Markup:
        """Return the plot as an element of a page, transparent and in the page's text colour."""
        text = self._draw(transparent=True)
        body = BLACK.sub("currentColor", text[text.index("<svg") :])
        body = re.sub(r'\bid="', f'id="{self.name}-', body)  # ids are unique within a plot only
        body = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{self.name}-", body)
        size = re.search(r'viewBox="[^"]*"', body)
        assert size is not None
        start = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" ').format(
            Markup(size[0])
        )
        label = Markup('aria-label="{}">').format(self.caption)
        return start + label + Markup(body[body.index(">") + 1 :])

    def _draw(self, *, transparent: bool) -> str:
        settings: Any = {"svg.fonttype": "none", "svg.hashsalt": self.name}
        settings |= {"font.family": "sans-serif"}
        stream = io.StringIO()
        with matplotlib.rc_context(settings):
            about = {"Date": None, "Creator": None}
            self.figure.savefig(stream, format="svg", transparent=transparent, metadata=about)
        return stream.getvalue()


ReportPart = str | ReportTable | ReportPlot  # a string: a paragraph of inline Markdown


@dataclass(frozen=True)
class ReportSection:
    """A heading and its parts."""

    title: str
    parts: list[ReportPart]
    page_only: bool = False  # not in the Markdown, which is in Git: it differs from run to run

    @property
    def anchor(self) -> str:
        """Name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A whole report; verdicts: a line a version, and whether it beats both."""

    title: str
    verdicts: list[tuple[str, bool]]
    sections: list[ReportSection]


def render_html(report: Report) -> str:
    """Return the report as one page that needs no other file."""
    inline = MarkdownIt("commonmark", {"html": False}).disable("image").renderInline
    environment = _environment(autoescape=True)
    environment.filters["inline"] = lambda text: Markup(inline(text))
    return environment.get_template("index.html.j2").render(report=report)


def render_markdown(report: Report, plots: str) -> str:
    """Return the report as Markdown; `plots`: folder of its plots, relative to it."""
    return _environment().get_template("compare.md.j2").render(report=report, plots=plots)


def save_plots(report: Report, folder: Path) -> None:
    """Write every plot to `<folder>/<name>.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for part in section.parts:
            if isinstance(part, ReportPlot):
                (folder / f"{part.name}.svg").write_text(part.svg())


def _escape_cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("infini.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
