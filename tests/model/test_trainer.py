"""transformers' Trainer: training, resuming and reloading the best checkpoint."""

import json
import logging
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction
from transformers.utils.logging import disable_propagation, enable_propagation

import infini
from architectures import L, text, tiny
from infini.model.base import load_base
from infini.model.modules import infini_parameters

METHODS: dict[str, dict[str, Any]] = {
    "parallel": {"layers": [0, 1], "segment_length": L, "alpha": 0.5},
    "window": {"window": 8, "sinks": 2},
}
STEPS, EVERY = 6, 2


def make_model(base_folder: Path, method: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return infini.retrofit(load_base(str(base_folder)), method, **METHODS[method])


def trainer(model: PreTrainedModel, folder: Path) -> Trainer:
    """Return a trainer on random text; its first checkpoint counts as the best."""
    turns = count()

    def first_is_best(predicted: EvalPrediction) -> dict[str, float]:
        assert predicted.predictions.shape == (4, 3 * L, 300)  # logits alone, no cache
        return {"turn": next(turns)}

    rows = [{"input_ids": t, "labels": t} for t in text(16, 3 * L)]
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=1e-2, per_device_train_batch_size=2,
        save_steps=EVERY, eval_strategy="steps", eval_steps=EVERY, load_best_model_at_end=True,
        metric_for_best_model="eval_turn", greater_is_better=False,
        use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return Trainer(
        model,
        arguments,
        train_dataset=rows[:12],
        eval_dataset=rows[12:],
        compute_metrics=first_is_best,
    )


def read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "infini.safetensors")


def all_equal(one: dict[str, Tensor], other: dict[str, Any]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_trainer_resumes_bit_for_bit_and_loads_its_best(
    method: str, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(base_folder, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    added = {id(tensor) for tensor in infini_parameters(model).values()}
    names = {name for name, tensor in model.named_parameters() if id(tensor) in added}
    enable_propagation()
    with caplog.at_level(logging.WARNING, "transformers"):
        trainer(model, tmp_path / "once").train()
        resumed = trainer(make_model(base_folder, method), tmp_path / "twice")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"once/checkpoint-{EVERY}"))
    disable_propagation()
    assert "missing keys" not in caplog.text  # the base's are ignored

    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= names
    once, last = tmp_path / "once", f"checkpoint-{STEPS}"
    first, end = read_checkpoint(once / f"checkpoint-{EVERY}"), read_checkpoint(once / last)
    assert not all_equal(first, end)
    assert all_equal(first, infini_parameters(model))  # the "best"
    assert all_equal(end, read_checkpoint(tmp_path / "twice" / last))
    assert not list(once.rglob("*.bin.index.json")) + list(once.rglob("pytorch_model*"))
    assert all_equal(end, infini_parameters(infini.load(once / last)))


@pytest.mark.parametrize("method", METHODS)
def test_load_state_dict_takes_saved_or_state_dict_names(method: str) -> None:
    options = {"window": 8} if method == "window" else {}
    model, other = (infini.retrofit(tiny("llama"), method, [1], **options) for _ in range(2))
    for tensor in infini_parameters(model).values():
        tensor.data.normal_()
    saved = dict(infini_parameters(model))
    result = other.load_state_dict(saved, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == other._keys_to_ignore_on_save
    assert all_equal(saved, infini_parameters(other))
    other.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(saved)


def test_save_pretrained_writes_from_the_main_process_only(
    base_folder: Path, tmp_path: Path
) -> None:
    model = make_model(base_folder, "parallel")
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "main", is_main_process=True, state_dict=None)
    index = json.loads((tmp_path / "main/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() <= model.state_dict().keys()
    assert set(index["weight_map"].values()) == {"infini.safetensors"}
