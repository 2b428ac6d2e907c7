"""Committed results of toy size: an untouched base, the replacements v1 and v2, the adapter v3."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from infini.corpus.config import Data
from infini.evaluation.config import FullProtocol
from infini.files import write_json
from infini.model.config import Base
from infini.paths import COSTS, PREPARED, Version
from infini.report.results import Results, Setup, read_results
from infini.training.config import ParallelAdapter, Replacement

TOKEN = 1000  # bytes of a token's keys and values


def window(size: int, nats: float) -> dict[str, Any]:
    """Return metrics of the base's sliding window, with four sinks."""
    figures = {"ppl": math.exp(nats), "nats": nats, "nats_se": 0.1, "tokens": size}
    return figures | {"state_bytes": TOKEN * (size + 4)}


BASE = {
    "segmented": {"ppl": 40.0, "nats": math.log(40.0), "nats_se": 0.1},
    "state_bytes": {"exact": 255 * TOKEN, "pending": 0, "memory": 0, "total": 255 * TOKEN},
    "full": {"ppl": 36.0, "nats": math.log(36.0), "nats_se": 0.1, "state_bytes": 1024 * TOKEN},
    "window_16": window(16, 3.9),
    "window_64": window(64, 3.65),
    "window_256": window(256, 3.6),
    "double_shift": {"ppl": 12000.0, "next_token_ppl": 40.0},
    "passkey": {"exact": 0.0, "exact_full": 0.75},
}


def version_metrics(ppl: float, gain: float, control: float | None = None) -> dict[str, Any]:
    """Return a version's metrics: perplexity, gain over the baseline and over its control."""
    nats = math.log(ppl)
    metrics: dict[str, Any] = {
        "finetune": {"epochs": 5, "train_size": 16, "ppl_before": 2 * ppl, "ppl_after": ppl},
        "documents": {"ppl": ppl, "ppl_se": 0.5, "nats": nats, "nats_se": 0.1},
        "memory_off": {"ppl": ppl + 2, "gain": 0.02, "gain_se": 0.01},
        "memory_swapped": {"ppl": ppl + 1, "gain": 0.01, "gain_se": 0.001},
        "vs_segmented": {"nats": nats - math.log(40), "nats_se": 0.01, "recovery": 0.5},
        "baseline": {
            "window": 64,
            "nats": nats + gain,
            "nats_se": 0.1,
            "ppl": math.exp(nats + gain),
            "gain": gain,
            "gain_se": 0.01,
        },
        "state_bytes": {"exact": 0, "pending": 56000, "memory": 4000, "total": 60000},
        "beats_both": 0,
        "added_parameters": 148615,
        "passkey": {"gain": 0.1, "gain_se": 0.2, "exact": 0.925, "exact_off": 0.0},
    }
    if control is not None:
        figures = {"nats": nats + control, "nats_se": 0.1, "gain": control, "gain_se": 0.001}
        metrics |= {"control": figures, "recovery": {"share": control / 0.1, "share_se": 0.01}}
        metrics["beats_both"] = int(gain > 0.02 and control > 0.002)
    return metrics


DISTILL = {"epochs": 10, "ppl_original": 36.0, "ppl_distilled": 48.0, "ppl_gap": 12.0}
METRICS_BY_VERSION: dict[str, dict[str, Any]] = {
    "base": BASE,
    "v1": version_metrics(44.0, -0.13) | {"distill": DISTILL},
    "v2": version_metrics(40.0, 0.0) | {"distill": {**DISTILL, "epochs": 25, "ppl_gap": 6.0}},
    "v3": version_metrics(38.0, 0.05, 0.005) | {"alpha": {"layer0": 0.152}},
}


def replacement(epochs: int) -> Replacement:
    """Return settings of a replacement that is distilled for so many epochs."""
    recipe = {"epochs": epochs, "lr": 1e-4, "gate_lr": 1e-4, "batch_size": 1}
    recipe |= {"hold_out": False, "patience": None}
    long = {"documents": 3, "update": "segment", "bptt_segments": 0}
    layer = {"layers": [0], "local": "linear", "position": "none", "init": "random"}
    content = {"layer": layer, "distill": recipe, "finetune": {**recipe, **long}}
    return Replacement.model_validate(content)


V3 = ParallelAdapter.model_validate(
    {
        "method": "parallel", "control": True, "alpha": {"init": 0.0}, "epochs": 5, "lr": 0.01,
        "layer": {"layers": [0], "update": "linear", "local": "softmax", "position": "none"},
        "gate_lr": 0.01, "batch_size": 1, "hold_out": True, "patience": 3, "documents": None,
        "update": "document", "bptt_segments": None,
    }
)  # fmt: skip
SETUP = Setup(
    base=Base(model="toy/base"),
    data=Data.model_validate(
        {
            "corpus": "toy", "shares": {"base": 0.0, "train": 0.6, "val": 0.2, "test": 0.2},
            "samples": 12, "documents": 6, "document_length": 512, "segment_length": 256,
            "test": {"samples": 6, "documents": 4},
        }
    ),
    full=FullProtocol(context=1024, stride=512),
    replacements={"v1": replacement(10), "v2": replacement(25)},
    adapters={"v3": V3},
)  # fmt: skip
PREPARED_CONTENT = {
    "splits": {"train": {"texts": 1200, "documents": 5}, "test": {"texts": 3, "documents": 4}},
    "padding_share": 0.125,
    "sha256": "0123",
}


def curves(version: str, nats: float) -> pd.DataFrame:
    """Return all curves of a version that is `nats` below segments without memory throughout."""
    rows: list[tuple[str, float, str, float, float | None]] = []
    for protocol in ("segmented", "full") if version == "base" else ("documents",):
        below = 0.0 if protocol == "segmented" else nats
        for by, places in (("segment", (0, 1)), ("distance", (0, 64, 256))):
            rows += [(f"ppl_by_{by}", x, protocol, 40 * math.exp(-below), 2.0) for x in places]
            if protocol != "segmented":
                rows += [(f"nats_vs_segmented_by_{by}", x, protocol, -below, 0.01) for x in places]
        rows += [("passkey_exact_by_distance", 1024, protocol, 0.25, None)]
        rows += [("recall_exact_by_pairs", x, protocol, 4 / x**2, None) for x in (4, 16)]
    if version == "base":
        rows += [
            ("nats_vs_full_by_state_bytes", TOKEN * (size + 4), f"window_{size}", 0.1, 0.02)
            for size in (16, 64, 256)
        ]
    else:
        rows += [
            ("nats_vs_full_by_state_bytes", 60000, p, 0.1, 0.02) for p in ("documents", "control")
        ]
        rows += [
            ("passkey_gain_by_depth", depth, f"{n} segments", nats * (1 + depth), None)
            for n in (2, 8)
            for depth in (0, 1)
        ]
        rows += [("gate", head, "layer 0", 0.3 + 0.1 * head, None) for head in (0, 1)]
    return pd.DataFrame(rows, columns=["curve", "x", "series", "value", "se"])


def costs(*names: str) -> pd.DataFrame:
    """Return costs at two lengths."""
    return pd.DataFrame(
        [
            {
                "version": name, "length": length, "state_bytes": length * (i + 1),
                "parameters": 6, "tokens_per_second": 1000.4 + i, "peak_mib": 12.5 + i,
            }
            for i, name in enumerate(names)
            for length in (1024, 16384)
        ]
    )  # fmt: skip


def write_results(root: Path, setup: Setup = SETUP, seeds: tuple[int, ...] = (0,)) -> None:
    """Write all committed results of a setup; versions that are not in the table are as v3."""
    for i, name in enumerate(("base", *setup.versions)):
        paths = Version(name)
        write_json(root / paths.metrics, METRICS_BY_VERSION.get(name, METRICS_BY_VERSION["v3"]))
        (root / paths.curves).parent.mkdir(parents=True, exist_ok=True)
        curves(name, 0.1 * (i + 1)).to_csv(root / paths.curves, index=False)
        for step in setup.versions[name].steps if name != "base" else ():
            summary = {"epochs": 2, "best_epoch": 1, "stopped_early": 1}
            write_json(root / paths.training_record(step), {str(seed): summary for seed in seeds})
            losses = {"epoch": [1, 2], "train_loss": [3.0, 2.0], "val_loss": [3.0, 4.0]}
            table = pd.concat([pd.DataFrame(losses).assign(seed=seed) for seed in seeds])
            table.to_csv(root / paths.training_curve(step), index=False)
    costs("base", *setup.versions).to_csv(root / COSTS, index=False)
    write_json(root / PREPARED, PREPARED_CONTENT)


def write_run(root: Path, params: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write a run's params.yaml and metrics by version."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for name, tree in metrics.items():
        write_json(root / Version(name).metrics, tree)


def toy_results(folder: Path, monkeypatch: Any) -> Results:
    """Write all results to a folder, change to it and read them."""
    monkeypatch.chdir(folder)
    write_results(folder)
    return read_results(SETUP)
