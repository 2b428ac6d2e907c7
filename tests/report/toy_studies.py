"""Studies of toy size: the toy results' versions with their params, and versions by window."""

import json
from pathlib import Path
from typing import Any

import yaml

from infini.evaluation.estimates import estimates_of
from infini.report.results import at_windows
from infini.report.studies import Reading, Study, kind_of
from report.toy_results import BASE, version

REPLACED = {"layer": {"layers": [0]}}
AUDIT = {"of": "v2", "question": "Twice?", "mistake": "labels_shifted_twice"}


def by_window(update: str, kept: int, *seeds: int) -> dict[str, Any]:
    """A window of 64."""
    layer = {"window": 64, "sinks": 4, "update": update, "kept": kept}
    return {"method": "window", "layer": layer, "seeds": list(seeds)}


PARAMS: dict[str, Any] = {
    "seed": 0,
    "seeds": [7],
    "base": {"model": "toy/base"},
    "data": {"corpus": "toy", "document_length": 512, "segment_length": 256},
    "replacements": {
        "v1": REPLACED,
        "v2": REPLACED,
        "v4": {"layer": {"layers": [0], "init": "teacher"}},
    },
    "adapters": {
        "v3": {"method": "parallel", "layer": {"layers": [0]}},
        "v5": by_window("delta", 0, 1, 2),
        "v6": by_window("none", 8),
        "v7": by_window("delta", 8),
    },
    "evaluate": {
        "documents": 4,
        "full": {"context": 1024},
        "passkey": {"lengths": [2, 8], "depths": [0.0, 0.5]},
        "recall": {"pairs": [4, 16], "questions": 4, "segments": 4},
    },
    "audits": {"twice": AUDIT, "right": {"of": "v2", "question": "Right?"}},
}


def reads(ppl: float, gain: float, worth: float) -> dict[str, Any]:
    """A version by a window of 64, whose memory is 20 tokens' bytes; the base's is 3.65 nats."""
    metrics = version(ppl, 39.0, gain, worth)
    metrics["bytes"] = {"exact": 68000, "pending": 0, "memory": 20000, "total": 88000}
    return metrics


def read_with(size: int, gain: float, worth: float, ppl: float = 36.5) -> dict[str, Any]:
    """`reads` with perplexity 37, also with another window."""
    other = reads(ppl, gain, worth)
    del other["passkey"], other["memory"]
    return reads(37.0, 0.02, 0.01) | {"at": {f"w{size}": other}}


def study(trees: dict[str, dict[str, Any]], **changes: Any) -> Study:
    """Of metrics by version; those of the base are the toy results' unless they are among them."""
    blocks = {**PARAMS["replacements"], **PARAMS["adapters"]}
    readings = []
    for name, tree in trees.items():
        if name == "base":
            continue
        figures, kind = estimates_of(tree), kind_of(blocks[name])
        own = blocks[name]["layer"].get("window")
        readings.append(Reading(name, kind, own, True, 1, figures))
        others = at_windows(figures).items()
        readings += [Reading(name, kind, size, False, 1, its) for size, its in others]
    whole: dict[str, Any] = {
        "name": "toy",
        "folder": Path("studies/toy"),
        "about": "A toy",
        "params": PARAMS,
        "base": estimates_of(trees.get("base", BASE)),
        "readings": readings,
        "audits": {},
    }
    return Study(**(whole | changes))


def write_study(
    folder: Path, trees: dict[str, dict[str, Any]], params: dict[str, Any] = PARAMS
) -> None:
    """What Git has of one."""
    (folder / "reports/metrics").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name, tree in trees.items():
        (folder / f"reports/metrics/{name}.json").write_text(json.dumps(tree))
