"""The base as it is loaded, and told apart from another."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer, weights_fingerprint
from toy import sentence


def test_a_base_is_loaded_to_be_read_and_not_trained(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    load_base(str(base_folder)).bfloat16().save_pretrained(half)
    again = load_base(str(half))
    for found in (model, again):
        assert not found.training
        assert {(p.dtype, p.requires_grad) for p in found.parameters()} == {(torch.float32, False)}
    expected = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_the_tokenizer_is_the_bases_own(base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    assert tokenizer.decode(tokenizer(sentence(9, 0))["input_ids"]) == sentence(9, 0)


def test_a_base_that_is_not_there_is_named(base_folder: Path, tmp_path: Path) -> None:
    for load in (load_base, load_tokenizer):
        for place in ("no/such-model", str(tmp_path)):
            with pytest.raises(InputError, match=f"base.model: no model at '{place}', give a folder"):
                load(place)
    shutil.copytree(base_folder, tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(InputError, match=r"base.model: no model at '.*other'"):
        load_base(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_hidden_layers", 10**9, "its config has 1000000000 layers, 1000 are the most"),
        ("vocab_size", 10**9, "its config asks for 32,000,00"),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": "x"},
            "weights are not readable",
        ),
    ],
)
def test_a_damaged_config_is_one_line(
    base_folder: Path, tmp_path: Path, key: str, value: object, said: str
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    file = tmp_path / "base/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError, match=f"base.model: '{tmp_path}/base': .*{said}"):
        load_base(str(tmp_path / "base"))


def test_a_base_with_a_broken_weight_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    for value in (float("nan"), float("-inf")):
        model.get_parameter(name)[0, 0] = value
        model.save_pretrained(tmp_path)
        message = f"base.model: '{tmp_path}': {name} has values that are not finite"
        with pytest.raises(InputError, match=message):
            load_base(str(tmp_path))


def test_a_fingerprint_is_of_names_shapes_and_values_in_any_type(model: PreTrainedModel) -> None:
    own = weights_fingerprint(model)
    assert weights_fingerprint(model.bfloat16()) == own
    model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] += 1
    changed = weights_fingerprint(model)
    assert changed != own
    weight = model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight
    weight.data = weight.data.view(-1, 8)
    assert weights_fingerprint(model) not in (own, changed)
