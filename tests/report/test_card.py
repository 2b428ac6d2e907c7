"""A released model's card has the figures of its own version."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from safetensors.numpy import save_file

from infini.errors import InputError
from infini.report.card import write_card
from report.toy_results import BASE, version_metrics, write_run

SETTINGS = {
    "format": 1, "method": "window", "layers": [0, 1], "window": 64, "sinks": 4,
    "update": "delta", "retained": 8, "policy": "decayed_attention",
    "base": {"model": "toy/base", "revision": None, "fingerprint": "0123"},
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "seeds": [],
    "base": {"model": "toy/base"},
    "data": {"corpus": "toy", "document_length": 512},
    "evaluate": {"documents": 4},
    "replacements": {},
    "adapters": {
        "v7": {
            "method": "window", "seeds": [1], "length": 256,
            "layer": {"layers": None, "window": 64, "sinks": 4, "update": "delta", "retained": 8},
        }
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, and in `weights` the model of its version v7."""
    metrics = version_metrics(38.0, 0.02, 0.01) | {"at_window_256": version_metrics(37.0, 0.07)}
    write_run(tmp_path, PARAMS, {"base": BASE, "v7": metrics})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/infini_config.json").write_text(json.dumps(SETTINGS))
    save_file({"a": np.zeros((3, 2)), "b": np.zeros(5)}, tmp_path / "weights/infini.safetensors")
    return tmp_path


def test_card_has_the_figures_of_its_version(run: Path) -> None:
    write_card(run / "weights", "v7", licence="mit", base="toy/toy-lm", run=run)
    card = (run / "weights/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("mit", "toy/toy-lm")
    assert "11 parameters" in card
    assert "16 documents of `toy`, up to 256 tokens each" in card
    assert "4 documents of `toy`, up to 512 tokens each" in card
    assert "Means of 2 trainings; these weights are one of them." in card
    assert "**v7 does not beat both**: 0.020 ± 0.010 ~ nats per token below" in card
    headline = card[card.index("| version") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in headline.splitlines()]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["version"][:4] == [
        "nats per token", "state bytes", "baseline", "gain over the baseline",
    ]  # fmt: skip
    assert cells["v7, window 64"][1:] == [
        "60,000", "window", "0.020 ± 0.010 ~", "0.0100 ± 0.0010", "10.0 ± 1.0", "no",
    ]  # fmt: skip
    assert cells["v7, window 256"][3] == "0.070 ± 0.010"
    assert cells["base, full attention"][:2] == ["3.58 ± 0.10", "1,024,000"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"retained": 16}, "infini_config.json: retained must be the version's 8, got 16"),
        ({"method": "parallel"}, "method must be the version's 'window', got 'parallel'"),
        ({"base": SETTINGS["base"] | {"model": "other"}}, "base must be the run's 'toy/base'"),
    ],
)
def test_card_rejects_a_model_of_other_settings(
    run: Path, changed: dict[str, Any], message: str
) -> None:
    (run / "weights/infini_config.json").write_text(json.dumps(SETTINGS | changed))
    with pytest.raises(InputError, match=message):
        write_card(run / "weights", "v7", licence="mit", base="toy/base", run=run)
    assert not (run / "weights/README.md").exists()


def test_card_needs_metrics_and_tensors(run: Path) -> None:
    with pytest.raises(InputError, match=r"reports/metrics/v9\.json: not found; run `dvc repro`"):
        write_card(run / "weights", "v9", licence="mit", base="toy/base", run=run)
    (run / "weights/infini.safetensors").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"infini.safetensors: no readable safetensors file"):
        write_card(run / "weights", "v7", licence="mit", base="toy/base", run=run)


@pytest.mark.parametrize("folder", sorted(ROOT.glob("studies/*/weights/*")), ids=lambda f: f.name)
def test_cards_in_git_have_the_figures_in_git(folder: Path, tmp_path: Path) -> None:
    for name in ("infini_config.json", "infini.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    names = {"licence": front["license"], "base": front["base_model"]}
    write_card(tmp_path, folder.name, run=folder.parents[1], **names)
    assert (tmp_path / "README.md").read_text() == card
