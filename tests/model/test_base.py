"""Loading a base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from architectures import tiny
from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer
from toy import sentence


def test_load_base_is_float32_frozen_and_in_evaluation_mode(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    load_base(str(base_folder)).bfloat16().save_pretrained(half)
    again = load_base(str(half))
    for base in (model, again):
        assert not base.training
        assert {(p.dtype, p.requires_grad) for p in base.parameters()} == {(torch.float32, False)}
    expected = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_load_tokenizer_round_trip(base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    assert tokenizer.decode(tokenizer(sentence(9, 0))["input_ids"]) == sentence(9, 0)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gemma2", "cohere", "gpt2"])
def test_load_tokenizer_names_a_folder_without_one(architecture: str, tmp_path: Path) -> None:
    """transformers makes some classes without a vocabulary, and fails for others."""
    tiny(architecture).save_pretrained(tmp_path)
    message = f"base.model: '{tmp_path}' has no tokenizer: save the base's own to it"
    with pytest.raises(InputError, match=message):
        load_tokenizer(str(tmp_path))
    if architecture != "llama":  # which needs more than settings
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(InputError, match=message):
            load_tokenizer(str(tmp_path))


def test_load_base_names_a_missing_model(base_folder: Path, tmp_path: Path) -> None:
    for load in (load_base, load_tokenizer):
        for name in ("no/such-model", str(tmp_path)):
            with pytest.raises(
                InputError, match=f"base.model: no model at '{name}', give a folder"
            ):
                load(name)
    shutil.copytree(base_folder, tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(InputError, match=r"base.model: no model at '.*other'"):
        load_base(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers must be ≤ 1000, got 1000000000"),
        ("vocab_size", 10**9, "its config needs 32,000,00"),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": "x"},
            "weights are not readable",
        ),
    ],
)
def test_load_base_rejects_a_damaged_config(
    base_folder: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    file = tmp_path / "base/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError, match=f"base.model: '{tmp_path}/base': .*{message}"):
        load_base(str(tmp_path / "base"))


def test_load_base_rejects_weights_that_are_not_finite(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    for value in (float("nan"), float("-inf")):
        model.get_parameter(name)[0, 0] = value
        model.save_pretrained(tmp_path)
        message = f"base.model: '{tmp_path}': {name} has values that are not finite"
        with pytest.raises(InputError, match=message):
            load_base(str(tmp_path))


def test_load_base_rejects_a_config_with_fewer_layers_than_the_file(
    base_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    file = tmp_path / "base/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    message = r"its config has num_hidden_layers 1, its weights have more \(gpt_neox.layers.1\."
    with pytest.raises(InputError, match=message):
        load_base(str(tmp_path / "base"))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_load_base_rejects_surplus_layers_without_prefix_and_takes_other_tensors(
    prefix: str, tmp_path: Path
) -> None:
    """Files of GPT-2 lack their prefix, and some have tensors that no model reads."""
    tiny("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors = {name.replace("transformer.", prefix): x for name, x in tensors.items()}
    save_file(tensors | {"tower.layers.9.weight": torch.ones(1)}, file, {"format": "pt"})
    load_base(str(tmp_path))
    more = {f"{prefix}h.3.ln_1.bias": torch.ones(16)}
    save_file(tensors | more, file, {"format": "pt"})
    with pytest.raises(InputError, match=f"num_hidden_layers 3, .* more \\({prefix}h.3.ln_1.bias"):
        load_base(str(tmp_path))
