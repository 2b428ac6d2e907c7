"""Everything that the stages left, read once: what tables and plots are made of."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from infini.params import Adapter, Audit, Replacement
from infini.record import (
    AUDITS,
    COSTS,
    EVALUATION,
    METRICS,
    SAMPLES,
    SUMMARY,
    TIMES,
    TRAINING,
    read_json,
)

STEPS = ("distill", "finetune")


@dataclass(frozen=True)
class Results:
    """By version, in the order of params.yaml; the untouched base is the first of `metrics`."""

    versions: dict[str, Replacement | Adapter]
    metrics: dict[str, dict[str, Any]]
    losses: dict[str, pd.DataFrame]  # Score.table with the columns protocol and seed
    passkey: dict[str, pd.DataFrame]  # a row a case
    gates: dict[str, pd.DataFrame]  # layer, head, gate, seed
    curves: dict[str, pd.DataFrame]  # by step: see `_curves`
    audits: dict[str, dict[str, Any]]  # those that were run
    costs: pd.DataFrame  # empty if not measured
    prepared: dict[str, dict[str, int]]
    padding: float  # the share of the training samples' places that hold none
    times: dict[str, dict[str, Any]]


def read_results(
    versions: dict[str, Replacement | Adapter], audits: dict[str, Audit], segment_length: int
) -> Results:
    """From the stages' files."""
    samples = pd.read_parquet(SAMPLES / "train.parquet", columns=["tokens"])["tokens"]
    names = ("base", *versions)
    audited = {name: AUDITS / f"{name}.json" for name in audits}
    return Results(
        versions,
        metrics={v: read_json(METRICS / f"{v}.json") for v in names},
        losses={v: pd.read_parquet(EVALUATION / v / "losses.parquet") for v in names},
        passkey={v: pd.read_csv(EVALUATION / v / "passkey.csv") for v in names},
        gates={v: pd.read_csv(EVALUATION / v / "gates.csv") for v in versions},
        curves={step: _curves(step, versions) for step in STEPS},
        audits={name: read_json(file) for name, file in audited.items() if file.is_file()},
        costs=pd.read_csv(COSTS) if COSTS.is_file() else pd.DataFrame(),
        prepared=read_json(SUMMARY),
        padding=1 - samples.map(len).mean() / segment_length,
        # Not tracked: of the last time that each stage really ran.
        times={
            file.stem: read_json(file)
            for file in sorted(TIMES.glob("*.json"))
            if file.stem.rpartition("-")[0] in ("prepare", *names)
        },
    )


def _curves(step: str, versions: dict[str, Replacement | Adapter]) -> pd.DataFrame:
    """All versions' loss curves, long: version, epoch, split, loss, event (best, stopped).

    With several seeds a curve's version is `<version> seed <n>`.
    """
    parts = [pd.DataFrame(columns=["version", "epoch", "split", "loss", "event"])]
    for version in versions:
        file = TRAINING / version / f"{step}.csv"
        if not file.is_file():
            continue
        summaries, table = read_json(file.with_suffix(".json")), pd.read_csv(file)
        for seed, curve in table.groupby("seed"):
            name = version if len(summaries) == 1 else f"{version} seed {seed}"
            parts.append(loss_curve(curve.drop(columns="seed"), summaries[str(seed)], name))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


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
