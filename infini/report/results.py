"""Committed results of a pipeline, read once: what tables, plots and verdicts are made of.

All of it is in Git (`reports/` and params.yaml), so that a fresh clone has a report without a run.
What is missing is left empty; a damaged file is an InputError.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from infini.corpus.config import Data
from infini.errors import InputError
from infini.evaluation.config import FullProtocol
from infini.evaluation.estimates import (
    DIFFERENCES,
    Estimate,
    estimates_of,
    mean_and_spread,
    with_errors,
)
from infini.files import flatten, read_json, read_table
from infini.model.config import Base
from infini.paths import (
    CHECKPOINTS,
    COSTS,
    CURVES,
    EVALUATION,
    METRICS,
    MODELS,
    PREPARED,
    TIMES,
    TRAINING,
    Version,
)
from infini.report.policies import (
    ScoredPolicy,
    best_policy,
    gains_over_policy,
    read_policies,
    read_ruler,
)
from infini.training.config import Adapter, Replacement, VersionConfig

TRAINING_STEPS = ("distill", "finetune")
BASE_KEYS = ("segmented", "full", "state_bytes")
VERSION_KEYS = ("documents", "baseline", "state_bytes", "beats_both")
COST_COLUMNS = ("version", "length", "state_bytes", "tokens_per_second", "peak_mib")
SIZES = frozenset({"state_bytes", "added_parameters", "tokens", "ppl", "nats_se", "ppl_se"})
LIMIT = 1e100  # larger values cannot be printed or drawn
AT_WINDOW = re.compile(r"at_window_(\d+)\.(.+)")

Figures = dict[str, Estimate]  # by dotted metric name, such as documents.ppl


@dataclass(frozen=True)
class Setup:
    """Sections of params.yaml that the report shows."""

    base: Base
    data: Data
    full: FullProtocol
    replacements: dict[str, Replacement]
    adapters: dict[str, Adapter]

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """Replacements, then adapters, by name."""
        return {**self.replacements, **self.adapters}


@dataclass(frozen=True)
class Results:
    """Results by version, in the order of params.yaml; the untouched base (`base`) comes first."""

    setup: Setup
    metrics: dict[str, dict[str, Any]]  # content of reports/metrics/<version>.json
    curves: dict[str, pd.DataFrame]  # curve, x, series, value, se
    training: dict[str, pd.DataFrame]  # by step: version, epoch, split, loss, event
    costs: pd.DataFrame  # a row a version and length
    prepared: dict[str, Any]  # content of reports/prepared.json
    policies: list[ScoredPolicy]  # retention policies of the untouched base
    ruler: dict[str, pd.DataFrame]  # retrieval by task and length, by policy

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """Metrics as estimates, gains over the best retention policy among them."""
        return {
            name: figures_of(tree, self.curves.get(name), self.policies)
            for name, tree in self.metrics.items()
        }

    def opponent(self, version: str, window: int | None = None) -> ScoredPolicy | None:
        """Return the policy that a version's gain is over; None: the plain window.

        Args:
            version: Its name.
            window: Another window that it was evaluated with; None: its own.
        """
        return opponent_of(self.metrics[version], self.figures[version], self.policies, window)

    @property
    def missing(self) -> list[str]:
        """Versions of params.yaml without metrics."""
        return [name for name in ("base", *self.setup.versions) if name not in self.metrics]


def figures_of(
    metrics: dict[str, Any], curves: pd.DataFrame | None, policies: list[ScoredPolicy]
) -> Figures:
    """Return metrics as estimates, with gains over the best retention policy.

    Args:
        metrics: Content of a metrics file.
        curves: Curves of the version, nats by document among them; None: there are none.
        policies: Retention policies of the untouched base.
    """
    figures = estimates_of(metrics)
    if curves is None or "baseline" not in metrics:
        return figures
    sizes = {match[1] for key in figures if (match := AT_WINDOW.fullmatch(key))}
    for window in (None, *sorted(map(int, sizes))):
        policy = _baseline(metrics, policies, window)
        protocol = "documents" if window is None else f"documents_at_window_{window}"
        gains = [] if policy is None else gains_over_policy(curves, policy, protocol)
        if gains:
            _set_baseline(figures, gains, metrics.get("seeds", 1), _prefix(window))
    return figures


def opponent_of(
    metrics: dict[str, Any],
    figures: Figures,
    policies: list[ScoredPolicy],
    window: int | None = None,
) -> ScoredPolicy | None:
    """Return the policy that a version's gain is over; None: the plain window.

    Args:
        metrics: Content of its metrics file.
        figures: What `figures_of` returned.
        policies: Retention policies of the untouched base.
        window: Another window that it was evaluated with; None: its own.
    """
    compared = f"{_prefix(window)}window.gain" in figures
    return _baseline(metrics, policies, window) if compared else None


def _baseline(
    metrics: dict[str, Any], policies: list[ScoredPolicy], window: int | None
) -> ScoredPolicy | None:
    """Return the best policy of a version's state bytes; None: none was scored."""
    size = flatten(metrics).get(f"{_prefix(window)}baseline.window")
    return None if size is None else best_policy(policies, int(size))


def _prefix(window: int | None) -> str:
    """Return what the keys of figures at another window begin with."""
    return "" if window is None else f"at_window_{window}."


def _set_baseline(figures: Figures, gains: list[Estimate], seeds: int, prefix: str) -> None:
    """Replace the gain over the plain window by that over the best policy, in place.

    gains: over that policy, of the seeds that were compared with it, of `seeds` in all.
    """
    figures[f"{prefix}window.gain"] = figures[f"{prefix}baseline.gain"]
    of_seeds = mean_and_spread([{"baseline": with_errors(gain=gain)} for gain in gains])
    figures[f"{prefix}baseline.gain"] = estimates_of(of_seeds)["baseline.gain"]
    figures[f"{prefix}baseline.seeds"] = Estimate(len(gains))
    beats = figures[f"{prefix}beats_both"].value == 1 and all(gain.is_gain for gain in gains)
    are_all = len(gains) >= seeds
    figures[f"{prefix}beats_both"] = Estimate(int(beats and are_all))
    figures[f"{prefix}undecided"] = Estimate(int(beats and not are_all))


def read_results(setup: Setup) -> Results:
    """Read all results that are there."""
    names = ("base", *setup.versions)
    curves = {name: Version(name).curves for name in names}
    return Results(
        setup,
        metrics={name: read_metrics(name) for name in names if Version(name).metrics.is_file()},
        curves={name: read_curves(file) for name, file in curves.items() if file.is_file()},
        training={step: read_training(step, setup.versions) for step in TRAINING_STEPS},
        costs=_read_costs(names),
        prepared=read_json(PREPARED, "splits") if PREPARED.is_file() else {},
        policies=read_policies(),
        ruler=read_ruler(),
    )


def read_metrics(name: str, root: Path = Path()) -> dict[str, Any]:
    """Read the metrics of a version, or of `base`; InputError for a value that is not finite."""
    file = root / Version(name).metrics
    tree = read_json(file, *(BASE_KEYS if name == "base" else VERSION_KEYS))
    for key, value in flatten(tree).items():
        if type(value) not in (int, float) or not abs(value) < LIMIT:
            raise InputError(f"{file}: {key} must be a finite number, got {value!r:.40}")
        if value < 0 and not SIZES.isdisjoint(key.split(".")):
            raise InputError(f"{file}: {key} must be ≥ 0, got {value}")
    return tree


def figures_at_windows(figures: Figures) -> dict[int, Figures]:
    """Return a version's figures with other windows than its own, by window."""
    by_window: dict[int, Figures] = {}
    for key, figure in figures.items():
        if match := AT_WINDOW.fullmatch(key):
            difference = match[2] in DIFFERENCES or figure.difference
            by_window.setdefault(int(match[1]), {})[match[2]] = figure._replace(
                difference=difference
            )
    return dict(sorted(by_window.items()))


def _read_costs(names: tuple[str, ...]) -> pd.DataFrame:
    if not COSTS.is_file():
        return pd.DataFrame(columns=list(COST_COLUMNS))
    table = read_table(COSTS, *COST_COLUMNS)
    return table[table["version"].isin(names)]


def read_curves(file: Path) -> pd.DataFrame:
    """Read the curves of a version, with columns curve, x, series, value, se."""
    table = read_table(file, "curve", "x", "series", "value")
    if table["value"].isna().any() or "se" not in table:
        raise InputError(f"{file}: a curve without values or column se; run stage evaluate_ppl")
    return table


def read_training(step: str, versions: dict[str, VersionConfig]) -> pd.DataFrame:
    """Read the loss curves of a training step of all versions.

    Args:
        step: `distill` or `finetune`.
        versions: Settings by version.

    Returns:
        Columns version, epoch, split (train or val), loss, event (best, stopped or empty). With
        several seeds a curve's version is `<version> seed <n>`.
    """
    parts = []
    for name, config in versions.items():
        file = Version(name).training_curve(step)
        if step not in config.steps or not file.is_file():
            continue
        table = read_table(file, "epoch", "train_loss", "seed")
        summaries = read_json(
            Version(name).training_record(step), *map(str, table["seed"].unique())
        )
        for seed, curve in table.groupby("seed"):
            label = name if len(summaries) == 1 else f"{name} seed {seed}"
            parts.append(_loss_curve(curve.drop(columns="seed"), summaries[str(seed)], label))
    columns = ["version", "epoch", "split", "loss", "event"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _loss_curve(curve: pd.DataFrame, summary: dict[str, Any], label: str) -> pd.DataFrame:
    rows = curve.melt("epoch", var_name="split", value_name="loss").dropna(subset="loss")
    rows["split"] = rows["split"].str.removesuffix("_loss")
    rows.insert(0, "version", label)
    rows["event"] = ""
    if summary.get("stopped_early"):
        rows.loc[rows["epoch"] == summary["epochs"], "event"] = "stopped"
    rows.loc[rows["epoch"] == summary.get("best_epoch"), "event"] = "best"
    return rows


def read_times(setup: Setup) -> dict[str, dict[str, float]]:
    """Read the wall times of every stage's last run on this machine, in seconds."""
    names = ("prepare", "base", *setup.versions)
    files = sorted(TIMES.glob("*.json"))
    return {
        file.stem: read_json(file, "seconds", "startup")
        for file in files
        if file.stem.rpartition("-")[0] in names
    }


def stale_files(setup: Setup) -> list[Path]:
    """Return files and folders of versions that params.yaml no longer has."""
    versions = {"base", *setup.versions}
    paths = [
        *METRICS.glob("*.json"),
        *CURVES.glob("*.csv"),
        *(path for folder in (MODELS, TRAINING, EVALUATION) for path in folder.glob("*/")),
    ]
    checkpoints = CHECKPOINTS.glob("*")
    return sorted(
        [path for path in paths if path.stem not in versions]
        + [path for path in checkpoints if path.name.partition("-")[0] not in versions]
    )
