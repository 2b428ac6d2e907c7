"""Everything that the stages left, read once: what tables, sentences and plots are made of."""

import re
from dataclasses import dataclass
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
    flatten,
    mean_over_seeds,
)
from infini.files import read_json, read_table
from infini.model.config import Base
from infini.paths import (
    AUDITS,
    CHECKPOINTS,
    COSTS,
    EVALUATION,
    METRICS,
    MODELS,
    PREPARED,
    SAMPLES,
    TIMES,
    TRAINING,
)
from infini.report.on_demand import of_other_runs
from infini.training.config import Adapter, Replacement, VersionConfig

STEPS = ("distill", "finetune")

# Columns that a table must have.
LOSSES = ("piece", "text", "bytes", "segment", "distance", "tokens", "nats", "protocol", "seed")
QUESTIONS = ("segments", "depth", "log_prob", "log_prob_off", "exact")
GATES = ("layer", "head", "gate")
CURVE = ("epoch", "train_loss", "seed")
COST = ("version", "length", "state_bytes", "tokens_per_second", "peak_mib")
SUMMARIES = ("epochs", "best_epoch", "stopped_early")  # keys of a training's

Figures = dict[str, Estimate]  # by dotted name, as documents.ppl
MOST = 1e100  # beyond all figures; what is printed and drawn is finite
AT = re.compile(r"at\.w(\d+)\.(.+)")  # of the same weights, read with another window


class Found(dict[str, Estimate]):
    """Figures, and the file that they are of: which a missing one is an InputError about."""

    def __init__(self, figures: Figures, file: Path):
        super().__init__(figures)
        self.file = file

    def __missing__(self, key: str) -> Estimate:
        raise InputError(f"{self.file}: no {key} in it; run the stage that writes it")


@dataclass(frozen=True)
class Setup:
    """The sections of params.yaml that the report tells about."""

    base: Base
    data: Data
    full: FullProtocol
    replacements: dict[str, Replacement]
    adapters: dict[str, Adapter]
    audits: dict[str, Any]

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """Replacements, then adapters, by name."""
        return {**self.replacements, **self.adapters}


@dataclass(frozen=True)
class Results:
    """By version in the order of params.yaml; where the untouched base is in, it is the first."""

    setup: Setup
    metrics: pd.DataFrame  # a row a version, a column a metric: what compare.csv holds
    figures: dict[str, Figures]  # the same as estimates
    losses: dict[str, pd.DataFrame]  # Score.table with the column protocol, the mean over seeds
    passkey: dict[str, pd.DataFrame]  # a row a question
    gates: dict[str, pd.DataFrame]  # layer, head, gate, seed; not of the base
    curves: dict[str, pd.DataFrame]  # by step: see `_curves`
    audits: dict[str, Figures]  # by audit, of those that were run
    costs: pd.DataFrame  # empty if not measured
    foreign: list[str]  # audits and costs that are there, but of another run
    prepared: dict[str, dict[str, int]]  # counts by split
    padding: float  # share of the training samples' places that hold no token


def read_results(setup: Setup) -> Results:
    """From the stages' files."""
    names = ("base", *setup.versions)
    files = {v: METRICS / f"{v}.json" for v in names}
    metrics = {v: _metrics(file) for v, file in files.items()}
    on_demand = {"costs": COSTS} | {name: AUDITS / f"{name}.json" for name in setup.audits}
    found = {name for name, file in on_demand.items() if file.is_file()}
    others = of_other_runs()
    foreign = {
        name for name in found if ("measure_cost" if name == "costs" else f"audit@{name}") in others
    }
    samples = read_table(SAMPLES / "train.parquet", "tokens")["tokens"]
    return Results(
        setup,
        metrics=pd.DataFrame({version: flatten(tree) for version, tree in metrics.items()}).T,
        figures={v: Found(estimates_of(tree), files[v]) for v, tree in metrics.items()},
        losses={v: _losses(EVALUATION / v / "losses.parquet") for v in names},
        passkey={v: _questions(EVALUATION / v / "passkey.csv") for v in names},
        gates={v: read_table(EVALUATION / v / "gates.csv", *GATES) for v in setup.versions},
        curves={step: _curves(step, setup.versions) for step in STEPS},
        audits={
            name: Found(estimates_of(_metrics(on_demand[name])), on_demand[name])
            for name in setup.audits
            if name in found - foreign
        },
        costs=read_table(COSTS, *COST) if "costs" in found - foreign else pd.DataFrame(),
        foreign=sorted(foreign),
        prepared=_counts(PREPARED),
        padding=1 - samples.map(len).mean() / setup.data.segment_length,
    )


def _metrics(file: Path) -> dict[str, Any]:
    """Of a version or an audit; InputError for what is no finite number."""
    tree = read_json(file)
    for key, value in flatten(tree).items():
        if type(value) not in (int, float) or not abs(value) < MOST:
            raise InputError(f"{file}: {key}: a finite number is needed, it holds {value!r:.40}")
    return tree


def at_windows(found: Figures) -> dict[int, Figures]:
    """A version's figures by the other windows that it was read with."""
    read: dict[int, Figures] = {}
    for key, figure in found.items():
        if match := AT.fullmatch(key):
            its = read.setdefault(int(match[1]), {})
            its[match[2]] = figure._replace(difference=match[2] in DIFFERENCES)
    return dict(sorted(read.items()))


def leftovers(setup: Setup) -> list[Path]:
    """What is there of versions and audits that params.yaml no longer has: no report shows it."""
    versions, audits = {"base", *setup.versions}, {*setup.audits}
    found = {
        *(f for f in METRICS.glob("*.json") if f.stem not in versions),
        *(f for f in AUDITS.glob("*.json") if f.stem not in audits),
        *(f for place in (MODELS, TRAINING, EVALUATION) for f in place.glob("*/")
          if f.name not in versions),
        *(f for f in CHECKPOINTS.glob("*") if f.name.partition("-")[0] not in versions | audits),
    }  # fmt: skip
    return sorted(found)


def read_times(setup: Setup) -> dict[str, dict[str, float]]:
    """By stage, in seconds, of the last time that each really ran here; empty on a fresh clone."""
    names = ("prepare", "base", *setup.versions)
    files = sorted(TIMES.glob("*.json"))
    return {f.stem: _times(f) for f in files if f.stem.rpartition("-")[0] in names}


def _times(file: Path) -> dict[str, float]:
    found = read_json(file, "seconds", "startup")
    if any(type(value) not in (int, float) for value in found.values()):
        raise InputError(f"{file}: seconds are needed; delete it")
    return found


def _counts(file: Path) -> dict[str, dict[str, int]]:
    found = read_json(file)
    if any(not isinstance(counts, dict) for counts in found.values()):
        raise InputError(f"{file}: counts by split are needed; run stage prepare_data")
    return found


def _losses(file: Path) -> pd.DataFrame:
    table = read_table(file, *LOSSES)
    if table.empty or table["tokens"].min() < 1 or table["nats"].abs().max() > MOST:
        raise InputError(f"{file}: no losses of text; run the stage that writes it")
    return mean_over_seeds(table)


def _questions(file: Path) -> pd.DataFrame:
    """Of an earlier evaluation, which asked for pass keys alone, all of that task."""
    table = read_table(file, *QUESTIONS)
    return table if "task" in table else table.assign(task="passkey")


def _curves(step: str, versions: dict[str, VersionConfig]) -> pd.DataFrame:
    """All versions' loss curves, long: version, epoch, split, loss, event (best, stopped).

    With several seeds a curve's version is `<version> seed <n>`.
    """
    parts = [pd.DataFrame(columns=["version", "epoch", "split", "loss", "event"])]
    for version, recipe in versions.items():
        if step not in recipe.steps:
            continue
        file = TRAINING / version / f"{step}.csv"
        table = read_table(file, *CURVE)
        if table["seed"].isna().any():
            raise InputError(f"{file}: a row without a seed; run the stage that writes it")
        summaries = _summaries(file.with_suffix(".json"), table["seed"])
        for seed, curve in table.groupby("seed"):
            name = version if len(summaries) == 1 else f"{version} seed {seed}"
            parts.append(loss_curve(curve.drop(columns="seed"), summaries[str(seed)], name))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _summaries(file: Path, seeds: pd.Series) -> dict[str, Any]:
    """A training's figures by seed; InputError where one of `seeds` has none."""
    found = read_json(file, *map(str, seeds.unique()))
    for seed, summary in found.items():
        if not isinstance(summary, dict) or not summary.keys() >= set(SUMMARIES):
            raise InputError(f"{file}: {seed}: {', '.join(SUMMARIES)} are needed")
    return found


def loss_curve(curve: pd.DataFrame, summary: dict[str, Any], version: str) -> pd.DataFrame:
    """One training's rows of `_curves`."""
    rows = curve.melt("epoch", var_name="split", value_name="loss").dropna(subset="loss")
    rows["split"] = rows["split"].str.removesuffix("_loss")
    rows.insert(0, "version", version)
    rows["event"] = ""
    if summary["stopped_early"]:
        rows.loc[rows["epoch"] == summary["epochs"], "event"] = "stopped"
    rows.loc[rows["epoch"] == summary["best_epoch"], "event"] = "best"
    return rows
