"""Loading a saved model, for good or for the length of a block."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import infini
from architectures import L, text
from infini.errors import InputError
from infini.model.base import load_base
from infini.model.loading import loaded
from infini.model.modules import infini_parameters

METHODS: list[dict[str, Any]] = [{"method": "parallel", "alpha": 0.3}] + [
    {"method": "replace", "init": init} for init in ("teacher", "random")
]


@pytest.mark.parametrize("options", METHODS)
@torch.no_grad()
def test_load_equals_the_saved_model_bit_for_bit(
    model: PreTrainedModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    infini.retrofit(model, layers=[1], segment_length=L, update="linear", **options)
    model.save_pretrained(tmp_path)
    again = infini.load(tmp_path)  # finds the base by its recorded name
    tokens = text(2, 50)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert not again.training


@torch.no_grad()
def test_load_finds_the_base_by_its_recorded_name_on_the_cpu(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    here = tmp_path / "a base"
    model.get_output_embeddings().weight.mul_(2.0)  # unlike the base of any other folder
    model.save_pretrained(here)
    base = infini.retrofit(load_base(str(here)), segment_length=L, alpha=0.3)
    base.save_pretrained(tmp_path / "ours")
    again = infini.load(tmp_path / "ours")
    assert {parameter.device.type for parameter in again.parameters()} == {"cpu"}
    tokens = text(2, 50)
    assert torch.equal(again(tokens).logits, base(tokens).logits)
    shutil.rmtree(here)
    with pytest.raises(
        InputError, match=f"no model at '{here}'.*; or say where the base is: base=FOLDER"
    ):
        infini.load(tmp_path / "ours")
    message = f"another base than '{base_folder}': its weights differ; it needs '{here}'"
    with pytest.raises(InputError, match=message):
        infini.load(tmp_path / "ours", load_base(str(base_folder)))


def test_load_rejects_what_does_not_fit(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has a memory already: infini.remove\(base\) first"):
        infini.load(tmp_path, model)
    base = load_base(str(base_folder))
    config = json.loads((tmp_path / "infini_config.json").read_text())

    def rejected(message: str, content: dict[str, object]) -> None:
        (tmp_path / "infini_config.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            infini.load(tmp_path, base)

    rejected("infini_config.json: incomplete: no base.model", {"format": 4})
    rejected("incomplete: no base.dtype", {"format": 4, "base": {"model": 1, "revision": 2}})
    rejected("incomplete: no method", {k: v for k, v in config.items() if k != "method"})
    rejected("infini_config.json: model is not an option of method", config | {"model": "x"})
    rejected("infini_config.json: depth is not an option of method", config | {"depth": 2})
    rejected("segment_length must be ≤ 64", config | {"segment_length": 65})
    torch.nn.init.zeros_(base.get_input_embeddings().weight)
    rejected("made for another base", config)


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("failing", [False, True])
@torch.no_grad()
def test_loaded_leaves_the_base_untouched_after_the_block(
    model: PreTrainedModel,
    base_folder: Path,
    tmp_path: Path,
    options: dict[str, Any],
    failing: bool,
) -> None:
    saved = load_base(str(base_folder))
    infini.retrofit(saved, layers=[1], segment_length=L, **options)
    saved.save_pretrained(tmp_path)
    model.get_output_embeddings().requires_grad_(True)
    kind, tokens = type(model), text(2, 3 * L)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    before, expected = model(tokens).logits, saved(tokens).logits
    assert not torch.equal(before, expected)
    outcome = pytest.raises(ZeroDivisionError) if failing else nullcontext()
    with outcome, loaded(tmp_path, model) as within:
        assert within is model
        assert torch.equal(within(tokens).logits, expected)
        now = {id(p) for p in within.parameters() if p.requires_grad}
        assert now == {id(p) for p in infini_parameters(within).values()}
        if failing:
            raise ZeroDivisionError
    assert type(model) is kind
    assert not infini_parameters(model)
    assert torch.equal(model(tokens).logits, before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
