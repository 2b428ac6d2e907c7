"""Every study's results, of what Git has: metrics and params; the default run is the first.

A version is known by what its block in params.yaml makes of it, never by its name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infini.evaluation.estimates import estimates_of
from infini.files import read_json, read_yaml
from infini.paths import AUDITS, METRICS
from infini.report.on_demand import of_other_runs
from infini.report.results import Figures, at_windows
from infini.report.window_curve import WindowCurve

STUDIES, BASE = Path("studies"), Path("data/base")
EMBEDDED = "embedded"  # the default run's name where its base is the one in Git

# What a version is made of.
REPLACED = "layer replaced"
LOSSLESS = "layer replaced, begun as the base's own"
PARALLEL = "beside a layer"
PLAIN = "window alone"
MATRIX = "window, matrix"
KEPT = "window, kept pairs"
BOTH = "window, kept pairs and matrix"


@dataclass(frozen=True)
class Reading:
    """A version, and the window that it is read with."""

    version: str
    kind: str  # one of those above
    window: int | None  # tokens; None: it reads by segments
    own: bool  # the window that it was made for
    seeds: int
    figures: Figures

    @property
    def label(self) -> str:
        """Its name in tables and sentences."""
        return self.version if self.window is None else f"{self.version} at window {self.window}"


@dataclass(frozen=True)
class Study:
    """A base, and all versions that were measured on it, in the order of its params.yaml."""

    name: str
    folder: Path
    about: str  # its base in words
    params: dict[str, Any]
    base: Figures  # of the untouched base
    readings: list[Reading]
    audits: dict[str, Figures]  # by audit, of those that were run on this base and text

    @property
    def context(self) -> int:
        """Tokens that full attention sees."""
        return int(self.params["evaluate"]["full"]["context"])

    @property
    def curve(self) -> WindowCurve:
        """What the untouched base reaches with its last tokens alone."""
        return WindowCurve(self.base, self.context)

    @property
    def versions(self) -> list[Reading]:
        """Each as it was made to read."""
        return [reading for reading in self.readings if reading.own]

    @property
    def windows(self) -> list[int]:
        """All that versions are read with."""
        return sorted({r.window for r in self.readings if r.window is not None})

    @property
    def asked(self) -> dict[str, Any]:
        """The audits of its params.yaml."""
        return {name: a for name, a in self.params["audits"].items()}

    def of_kind(self, *kinds: str) -> list[Reading]:
        """The versions of these kinds."""
        return [reading for reading in self.versions if reading.kind in kinds]

    def at(self, window: int | None) -> list[Reading]:
        """Whatever is read with this window; None: by segments."""
        return [reading for reading in self.readings if reading.window == window]


def read_studies(root: Path = Path(".")) -> list[Study]:
    """Those that have metrics of their base: the default run, then studies/* by name."""
    others = sorted(file.parent for file in (root / STUDIES).glob("*/params.yaml"))
    folders = {root: None} | {folder: folder.name for folder in others}
    return [
        _read(folder, name)
        for folder, name in folders.items()
        if (folder / METRICS / "base.json").is_file()
    ]


def _read(folder: Path, name: str | None) -> Study:
    params, base = read_yaml(folder / "params.yaml"), folder / METRICS / "base.json"
    model = params["base"]["model"]
    place = folder / model
    made = {}
    if Path(model).parts[-2:] == BASE.parts:  # a stage beside it writes it
        made = read_yaml(place.parents[1] / "base/dvc.yaml").get("stages", {})
    return Study(
        name=name or (EMBEDDED if made else model),
        folder=folder,
        about=next((stage["desc"] for stage in made.values() if "desc" in stage), model),
        params=params,
        base=estimates_of(read_json(base, "segmented", "full", "window")),
        readings=list(_readings(folder, params)),
        audits=_audits(folder, params["audits"]),
    )


def _readings(folder: Path, params: dict[str, Any]) -> Iterator[Reading]:
    """Every version whose metrics are there: with its own window, then with others."""
    for version, block in {**params["replacements"], **params["adapters"]}.items():
        file = folder / METRICS / f"{version}.json"
        if not file.is_file():
            continue
        figures = estimates_of(read_json(file, "documents", "equal_bytes", "bytes", "pays"))
        kind, window = kind_of(block), block["layer"].get("window")
        seeds = 1 + len(params.get("seeds", [])) + len(block.get("seeds", []))
        yield Reading(version, kind, window, True, seeds, figures)
        for size, its in at_windows(figures).items():
            yield Reading(version, kind, size, False, seeds, its)


def kind_of(block: dict[str, Any]) -> str:
    """What a version is made of, by its block in params.yaml."""
    layer, method = block["layer"], block.get("method")
    if method is None:
        return LOSSLESS if layer.get("init") == "teacher" else REPLACED
    if method == "parallel":
        return PARALLEL
    matrix, kept = layer.get("update") != "none", layer.get("kept", 0) > 0
    return {(1, 1): BOTH, (1, 0): MATRIX, (0, 1): KEPT, (0, 0): PLAIN}[matrix, kept]


def _audits(folder: Path, asked: dict[str, Any]) -> dict[str, Figures]:
    """Those that were run, unless on another base or text than the versions."""
    others = of_other_runs(folder)
    files = {name: folder / AUDITS / f"{name}.json" for name in asked}
    return {
        name: estimates_of(read_json(file))
        for name, file in files.items()
        if file.is_file() and f"audit@{name}" not in others
    }
