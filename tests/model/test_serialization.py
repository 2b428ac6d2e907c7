"""Files of a saved model, and damaged files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import infini
from architectures import L
from infini.errors import InputError
from infini.model.base import load_base
from infini.model.modules import infini_parameters


def test_save_pretrained_writes_added_tensors_config_and_card(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "replace", [1], L, init="random", update="linear", local="linear")
    model.save_pretrained(tmp_path / "new/folder")
    files = {file.name: file for file in (tmp_path / "new/folder").iterdir()}
    assert files.keys() == {
        "README.md",
        "config.json",
        "infini.safetensors",
        "infini_config.json",
        "model.safetensors.index.json",
    }
    tensors, added = load_file(files["infini.safetensors"]), infini_parameters(model)
    assert tensors.keys() == added.keys()
    assert all(name.startswith("layers.1.") for name in tensors)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in added.items())
    config = json.loads(files["infini_config.json"].read_text())
    base = config.pop("base")
    assert (base["model"], base["revision"]) == (str(base_folder), None)
    assert len(config.pop("sha256")) == 64
    assert config == {
        "format": 4,
        "method": "replace",
        "layers": [1],
        "segment_length": L,
        "update": "linear",
        "local": "linear",
        "position": "none",
        "init": "random",
        "segmented": True,
    }
    card = files["README.md"].read_text()
    assert f"base_model: {base_folder}\n" in card
    assert f"{sum(t.numel() for t in tensors.values()):,} parameters" in card
    assert "| memory update | linear |" in card


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_save_pretrained_rejects_weights_that_are_not_finite(
    value: float, model: PreTrainedModel, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L)
    infini_parameters(model)["layers.1.norm.weight"].data[3] = value
    with pytest.raises(InputError, match=r"layers.1.norm.weight has values that are not fin"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_load_rejects_tensors_that_do_not_fit_and_leaves_the_base(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L)
    model.save_pretrained(tmp_path)
    base = load_base(str(base_folder))
    tensors = load_file(tmp_path / "infini.safetensors")

    def rejected(message: str, **changed: torch.Tensor | None) -> None:
        content = {k: v for k, v in (tensors | changed).items() if v is not None}
        save_file(content, tmp_path / "infini.safetensors")
        with pytest.raises(InputError, match=message):
            infini.load(tmp_path, base)
        assert not infini_parameters(base)

    name = "layers.1.alpha"
    rejected(f"missing tensors: {name}", **{name: None})
    rejected("unexpected tensors: more", more=torch.zeros(1))
    rejected(r"alpha must have shape \(\), got \(2,\)", **{name: torch.zeros(2)})
    rejected(
        f"infini.safetensors: {name} has values that are not finite",
        **{name: torch.tensor(torch.nan)},
    )
    (tmp_path / "infini.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no readable safetensors file"):
        infini.load(tmp_path, base)
    (tmp_path / "infini_config.json").write_text("{")
    with pytest.raises(InputError, match=r"infini_config.json: not JSON"):
        infini.load(tmp_path, base)
    with pytest.raises(InputError, match=r"no infini_config.json"):
        infini.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (3, "format must be 4, got 3: an earlier version of infini wrote it, save the model again"),
        (5, "format must be 4, got 5$"),
        (None, "format must be 4, got None$"),
    ],
)
def test_load_rejects_other_formats_in_one_line(
    recorded: object, message: str, model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L).save_pretrained(tmp_path)
    file = tmp_path / "infini_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": recorded}))
    with pytest.raises(InputError, match=f"infini_config.json: {message}"):
        infini.load(tmp_path, load_base(str(base_folder)))
