"""A released model's card has the figures of the version that it is, and of no other."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from safetensors.numpy import save_file

from infini.errors import InputError
from infini.report.card import write
from report.toy_results import BASE
from report.toy_studies import read_with, write_study

SETTINGS = {
    "format": 1, "method": "window", "layers": [0, 1], "window": 64, "sinks": 4,
    "update": "delta", "kept": 8, "base": {"model": "toy/base", "revision": None,
    "fingerprint": "0123"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, and in `weights` the model of its version v7."""
    metrics = read_with(256, 0.07, 0.5) | {"finetune": {"train_size": 16}}
    metrics["equal_bytes"] |= {"nats": 3.65, "nats_se": 0.1}
    write_study(tmp_path, {"base": BASE, "v7": metrics})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/infini_config.json").write_text(json.dumps(SETTINGS))
    save_file({"a": np.zeros((3, 2)), "b": np.zeros(5)}, tmp_path / "weights/infini.safetensors")
    return tmp_path


def test_the_card_has_what_was_measured(run: Path) -> None:
    write(run / "weights", "v7", licence="mit", base="toy/toy-lm", run=run)
    card = (run / "weights/README.md").read_text()
    assert "\nlicense: mit\n" in card
    assert '\nbase_model: "toy/toy-lm"\n' in card
    assert "# Infini-attention for toy/toy-lm\n" in card
    assert "Passkeys retrieved: v7 " in card
    assert "11 parameters" in card
    assert "| trained on | 16 documents of `toy`, up to 512 tokens each |" in card
    assert "On 4 held-out documents of `toy`, up to 512 tokens each. Means of 2 trainings" in card
    rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("| ")}
    cells = {name: [cell.strip() for cell in row.split("|")[2:-1]] for name, row in rows.items()}
    assert cells["version"][:4] == [
        "nats a token", "bytes", "the base's window of as many", "gain at equal bytes",
    ]  # fmt: skip
    worth = ["0.0100 ± 0.0010", "10.0 ± 1.0", "no"]
    assert cells["v7 at window 64"] == [
        "3.61 ± 0.10", "88,000", "3.65 ± 0.10", "0.020 ± 0.010 ~", *worth,
    ]  # fmt: skip
    assert cells["v7 at window 256"][3] == "0.070 ± 0.010"
    assert cells["the base, full attention"][:2] == ["3.58 ± 0.10", "1,024,000"]


def test_a_model_of_another_version_gets_no_figures(run: Path) -> None:
    def refused(message: str, **changed: object) -> None:
        (run / "weights/infini_config.json").write_text(json.dumps(SETTINGS | changed))
        with pytest.raises(InputError, match=message):
            write(run / "weights", "v7", licence="mit", base="toy/base", run=run)

    refused("infini_config.json: kept is 16, of the version 8", kept=16)
    refused("method is 'parallel', of the version 'window'", method="parallel")
    refused("base is 'other', of the run 'toy/base'", base=SETTINGS["base"] | {"model": "other"})
    (run / "weights/infini_config.json").write_text(json.dumps(SETTINGS))
    for name, folder in (("v5", run), ("v9", run), ("v7", run / "weights")):
        with pytest.raises(InputError, match=f"{name}: no metrics of it in {folder}: dvc repro"):
            write(run / "weights", name, licence="mit", base="toy/base", run=folder)
    (run / "weights/infini.safetensors").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"infini.safetensors: no readable safetensors file"):
        write(run / "weights", "v7", licence="mit", base="toy/base", run=run)
    assert not (run / "weights/README.md").exists()


@pytest.mark.parametrize("folder", sorted(ROOT.glob("studies/*/weights/*")), ids=lambda f: f.name)
def test_the_cards_in_git_are_of_the_figures_in_git(folder: Path, tmp_path: Path) -> None:
    for name in ("infini_config.json", "infini.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    write(
        tmp_path,
        folder.name,
        licence=front["license"],
        base=front["base_model"],
        run=folder.parents[1],
    )
    assert (tmp_path / "README.md").read_text() == card
