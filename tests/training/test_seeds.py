"""Training with several seeds: models, records, curves, checkpoints."""

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import PreTrainedModel

from infini.model.retrofit import retrofit
from infini.paths import CHECKPOINTS
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit
from infini.training.seeds import TrainingResult, TrainingRun, train_seeds


def test_train_seeds_writes_all_seeds_and_then_removes_checkpoints(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    retrofit(model, segment_length=16)
    counts: list[int] = []  # of checkpoints when each seed starts

    def train(run: TrainingRun) -> TrainingResult:
        counts.append(len(list(CHECKPOINTS.glob("*"))))
        checkpoint = Checkpoint(run.checkpoint_name, "key")
        checkpoint.save({}, [], {})
        curve = [
            {"epoch": epoch, "train_loss": run.seed / epoch, "val_loss": 2.0} for epoch in (1, 2)
        ]
        return TrainingResult(
            model, Fit(curve, best_epoch=2, seconds=4.0 + run.seed), 9, 1, checkpoint
        )

    train_seeds("v1", "finetune", [0, 6], train)
    folder = Path("reports/training/v1")
    assert counts == [0, 1]
    assert not CHECKPOINTS.exists()
    assert {str(file) for file in Path("data/models").rglob("*.safetensors")} == {
        f"data/models/v1/finetune/seed{seed}/infini.safetensors" for seed in (0, 6)
    }
    summaries = json.loads((folder / "finetune.json").read_text())
    assert {seed: summary["train_loss"] for seed, summary in summaries.items()} == {
        "0": 0.0,
        "6": 3.0,
    }
    assert all(s["best_epoch"] == s["epochs"] == 2 for s in summaries.values())
    assert all(s["val_ppl"] == 7.389 for s in summaries.values())  # e²
    curves = pd.read_csv(folder / "finetune.csv")
    assert curves.columns.tolist() == ["epoch", "train_loss", "val_loss", "seed"]
    assert curves.groupby("seed")["train_loss"].sum().to_dict() == {0: 0.0, 6: 9.0}
    times = json.loads(Path("data/times/v1-finetune.json").read_text())
    assert times["seconds_per_epoch"] == 3.5  # of 2 and 5


def test_train_seeds_keeps_checkpoints_when_killed(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    retrofit(model, segment_length=16)

    def train(run: TrainingRun) -> TrainingResult:
        if run.seed == 1:
            raise KeyboardInterrupt
        checkpoint = Checkpoint("first", "key")
        checkpoint.save({}, [], {})
        return TrainingResult(model, Fit([{"train_loss": 1.0}], best_epoch=1), 9, 0, checkpoint)

    with pytest.raises(KeyboardInterrupt):
        train_seeds("v1", "finetune", [0, 1], train)
    assert len(list(CHECKPOINTS.iterdir())) == 1
    assert not Path("reports/training").exists()
