"""Trainer trains a model with a memory, goes on from its checkpoints and back to its best."""

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


def retrofitted(base_folder: Path, method: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return infini.retrofit(load_base(str(base_folder)), method, **METHODS[method])


def trainer(model: PreTrainedModel, folder: Path) -> Trainer:
    """On random text; the first checkpoint counts as its best."""
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


def saved(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "infini.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Any]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_trainer_resumes_to_the_same_bits_and_loads_its_best(
    method: str, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = retrofitted(base_folder, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = {id(tensor) for tensor in infini_parameters(model).values()}
    names = {name for name, tensor in model.named_parameters() if id(tensor) in ours}
    enable_propagation()
    with caplog.at_level(logging.WARNING, "transformers"):
        trainer(model, tmp_path / "once").train()
        resumed = trainer(retrofitted(base_folder, method), tmp_path / "twice")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"once/checkpoint-{EVERY}"))
    disable_propagation()
    assert "missing keys" not in caplog.text  # the base is none

    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= names
    once, last = tmp_path / "once", f"checkpoint-{STEPS}"
    first, end = saved(once / f"checkpoint-{EVERY}"), saved(once / last)
    assert not same(first, end)
    assert same(first, infini_parameters(model))  # the "best"
    assert same(end, saved(tmp_path / "twice" / last))
    assert not list(once.rglob("*.bin.index.json")) + list(once.rglob("pytorch_model*"))
    assert same(end, infini_parameters(infini.load(once / last)))


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_may_have_our_names_or_the_models(method: str) -> None:
    options = {"window": 8} if method == "window" else {}
    model, other = (infini.retrofit(tiny("llama"), method, [1], **options) for _ in range(2))
    for tensor in infini_parameters(model).values():
        tensor.data.normal_()
    mine = dict(infini_parameters(model))
    found = other.load_state_dict(mine, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) == other._keys_to_ignore_on_save
    assert same(mine, infini_parameters(other))
    other.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(mine)


def test_one_process_of_many_writes(base_folder: Path, tmp_path: Path) -> None:
    model = retrofitted(base_folder, "parallel")
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "main", is_main_process=True, state_dict=None)
    index = json.loads((tmp_path / "main/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() <= model.state_dict().keys()
    assert set(index["weight_map"].values()) == {"infini.safetensors"}
