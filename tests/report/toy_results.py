"""Results of toy size for the report's tests: an untouched base, v1, v2 and the adapter v3."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from infini.corpus.config import Data, Shares, TestSize
from infini.evaluation.config import FullProtocol
from infini.evaluation.estimates import estimates_of, flatten
from infini.model.config import Base
from infini.report.results import Results, Setup
from infini.report.window_curve import WindowCurve
from infini.training.config import Audit, ParallelAdapter, Replacement

TOKEN = 1000  # bytes of a token's keys and values


def window(tokens: int, nats: float) -> dict[str, Any]:
    """The base with so many last tokens and four sinks."""
    carried = {"bytes": TOKEN * (tokens + 4), "tokens": tokens}
    return {"ppl": math.exp(nats), "nats": nats, "nats_se": 0.1, **carried}


BASE = {
    "segmented": {"ppl": 40.0, "nats": math.log(40.0), "nats_se": 0.1},
    "bytes": {"exact": 255 * TOKEN, "pending": 0, "memory": 0, "total": 255 * TOKEN},
    "full": {
        "ppl": 36.0,
        "nats": math.log(36.0),
        "nats_se": 0.1,
        "bits_per_byte": 1.1,
        "bytes": 1024 * TOKEN,
    },
    "window": {"w16": window(16, 3.9), "w64": window(64, 3.65), "w256": window(256, 3.6)},
    "double_shift": {"ppl": 12000.0, "next_token_ppl": 40.0},
}


def version(ppl: float, off: float, gain: float, worth: float | None = None) -> dict[str, Any]:
    """A version's metrics: perplexity, with its memory empty, gain at equal bytes, worth."""
    nats = math.log(ppl)
    metrics = {
        "distill": {"epochs": 10, "ppl_distilled": ppl + 10, "ppl_gap": 20.0 if ppl > 40 else 10.0},
        "documents": {"ppl": ppl, "ppl_se": 0.5, "nats": nats, "nats_se": 0.1},
        "memory_off": {"ppl": off},
        "memory_swapped": {"ppl": off - 1},
        "vs_base": {"nats": math.log(ppl / 40), "nats_se": 0.01},
        "memory": {"gain": math.log(off / ppl), "gain_se": 0.01},
        "context_recovery": {"share": math.log(40 / ppl) / math.log(40 / 36), "share_se": 0.1},
        "equal_bytes": {"window": 64, "ppl": math.exp(nats + gain), "gain": gain, "gain_se": 0.01},
        "bytes": {"exact": 0, "pending": 56000, "memory": 4000, "total": 60000},
        "pays": 0,
        "passkey": {"gain": 0.1, "gain_se": 0.2, "exact": 0.0},
    }
    if worth is not None:
        control = {"ppl": math.exp(nats + worth), "nats": nats + worth, "nats_se": 0.1}
        metrics["control"] = {**control, "worth": worth, "worth_se": 0.001}
        metrics["recovery"] = {"share": worth / 0.1, "share_se": 0.01}
        metrics["pays"] = int(gain > 0.02 and worth > 0.002)
    return metrics


METRICS = {
    "base": BASE,
    "v1": version(44.0, 44.0, -0.13),
    "v2": version(38.0, 40.0, 0.05, 0.005),
}
FIGURES = {name: estimates_of(tree) for name, tree in METRICS.items()}
CURVE = WindowCurve(FIGURES["base"], 1024)


def audit(segmented: tuple[float, float], shifted: tuple[float, float]) -> dict[str, Any]:
    """An audit's metrics, before and after."""
    return {
        when: {"segmented": {"ppl": a}, "double_shift": {"ppl": b}}
        for when, a, b in zip(("before", "after"), segmented, shifted, strict=True)
    }


RIGHT = estimates_of(audit((90.0, 50.0), (12000.0, 11000.0)))
FALLS = estimates_of(audit((90.0, 900.0), (12000.0, 600.0)))
STAYS = estimates_of(audit((90.0, 900.0), (12000.0, 11000.0)))
AUDITS = {
    "twice": Audit(of="v2", question="Twice?", mistake="labels_shifted_twice"),
    "right": Audit(of="v2", question="Right?"),
}


def replacement(epochs: int, patience: int | None, lr: float) -> Replacement:
    """A recipe; with patience val text is held out."""
    recipe = {
        "epochs": epochs,
        "lr": lr,
        "gate_lr": 1e-4,
        "batch_size": 1,
        "hold_out": patience is not None,
        "patience": patience,
    }
    long = {"documents": 3, "update": "segment", "bptt_segments": 0}
    content = {"layer": {"layers": [0], "update": "delta", "local": "linear"}}
    return Replacement.model_validate(
        {**content, "distill": recipe, "finetune": {**recipe, **long}}
    )


V3 = ParallelAdapter.model_validate(
    {
        "method": "parallel",
        "control": True,
        "layer": {"layers": [0], "update": "linear", "local": "softmax"},
        "alpha": 0.0,
        "epochs": 5,
        "lr": 0.01,
        "gate_lr": 0.01,
        "batch_size": 1,
        "hold_out": True,
        "patience": 3,
        "documents": None,
        "update": "document",
        "bptt_segments": None,
    }
)
SETUP = Setup(
    base=Base(model="toy/base"),
    data=Data(
        corpus="toy",
        shares=Shares(base=0.0, train=0.6, val=0.2, test=0.2),
        samples=12,
        documents=6,
        document_length=512,
        segment_length=256,
        test=TestSize(samples=6, documents=4),
    ),
    full=FullProtocol(context=1024, stride=512),
    replacements={"v1": replacement(10, None, 1e-4), "v2": replacement(50, 2, 1e-5)},
    adapters={"v3": V3},
    audits=AUDITS,
)


def losses(**nats: float) -> pd.DataFrame:
    """A loss table of four texts in two segments; by protocol, nats a token are on average so."""
    rows = [
        {
            "piece": piece,
            "text": piece,
            "bytes": 100,
            "segment": segment,
            "distance": (64, 256)[segment],
            "tokens": 10,
            "nats": 10 * value * (0.97 + 0.02 * piece),
            "protocol": protocol,
        }
        for protocol, value in nats.items()
        for piece in range(4)
        for segment in range(2)
    ]
    return pd.DataFrame(rows)


BASE_LOSSES = {"full": 3.58, "window16": 3.9, "window64": 3.65, "window256": 3.6}


def passkey(gain: float) -> pd.DataFrame:
    """Pass keys at two depths in two lengths, the gain at depth 1 is twice that at 0; codes.

    Retrieved are the pass keys at depth 1, and one of two codes among 4, none among 16.
    """
    keys = [
        {"task": "passkey", "segments": n, "pairs": 1, "depth": d, "exact": d,
         "distance": round(256 * n * (1 - d)) + 12, "log_prob": gain * (1 + d) - 9.0}
        for n in (2, 4)
        for d in (0.0, 1.0)
    ]  # fmt: skip
    codes = [
        {"task": "recall", "segments": 4, "pairs": pairs, "depth": 0.3, "exact": exact,
         "distance": distance, "log_prob": 7.0}
        for pairs, exact, distance in ((4, 1.0, 90), (4, 0.0, 200), (16, 0.0, 255))
    ]  # fmt: skip
    return pd.DataFrame(keys + codes).assign(log_prob_off=-9.0)


def gates(*shares: float) -> pd.DataFrame:
    """Layer 0, a head a share."""
    return pd.DataFrame(
        [{"layer": 0, "head": i, "gate": share, "seed": 0} for i, share in enumerate(shares)]
    )


def curves(*names: str) -> pd.DataFrame:
    """Two epochs of train and val loss, the second is the best."""
    columns = ["version", "epoch", "split", "loss", "event"]
    rows = [
        (name, epoch, split, 4.0 - epoch + i, "best" if epoch == 2 else "")
        for i, name in enumerate(names)
        for split in ("train", "val")
        for epoch in (1, 2)
    ]
    return pd.DataFrame(rows, columns=columns)


def costs(*names: str) -> pd.DataFrame:
    """Two lengths each."""
    return pd.DataFrame(
        [
            {
                "version": name,
                "length": length,
                "state_bytes": length * (i + 1),
                "tokens_per_second": 1000.4 + i,
                "peak_mib": 12.5 + i,
            }
            for i, name in enumerate(names)
            for length in (1024, 16384)
        ]
    )


def results(**changes: Any) -> Results:
    """Results of all versions of a setup; further changes replace fields."""
    setup = changes.pop("setup", SETUP)
    names = tuple(setup.versions)
    metrics = {"base": BASE}
    for name, recipe in setup.versions.items():
        metrics[name] = version(38.0, 40.0, 0.05, 0.005)
        if "distill" not in recipe.steps:
            del metrics[name]["distill"]
            metrics[name]["alpha"] = {"layer0": 0.152}
    whole = Results(
        setup=setup,
        metrics=pd.DataFrame({name: flatten(tree) for name, tree in metrics.items()}).T,
        figures={name: estimates_of(tree) for name, tree in metrics.items()},
        losses={
            "base": losses(segmented=3.6, **BASE_LOSSES),
            **{name: losses(documents=3.63, memory_off=3.69, control=3.64) for name in names},
        },
        passkey={name: passkey(0.1) for name in ("base", *names)},
        gates={name: gates(0.4, 0.5) for name in names},
        curves={
            "distill": curves(*setup.replacements),
            "finetune": curves(*names),
        },
        audits={"twice": FALLS, "right": RIGHT},
        costs=costs("base", *names),
        prepared={"train": {"texts": 1200, "documents": 5}, "test": {"texts": 3}},
        padding=0.125,
        foreign=[],
    )
    return replace(whole, **changes)
