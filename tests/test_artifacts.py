"""Damaged files that stages and the library read: a one-line error or the right result."""

import json
import pickle
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import infini
import toy_artifacts
from infini.corpus.inputs import file_hashes
from infini.errors import InputError
from infini.files import read_json, write_json
from infini.model.architectures import cache_of
from infini.model.base import load_base
from infini.model.loading import loaded
from toy_artifacts import TOKENS, Artifact, make, outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """Write one of every file."""
    folder = tmp_path_factory.mktemp("home")
    make(folder, base_folder)
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


@pytest.fixture
def artifacts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """Copy the files to a folder of the test's own, and return them by name."""
    here = tmp_path / "home"
    shutil.copytree(home, here)
    monkeypatch.chdir(here)
    return toy_artifacts.artifacts(here, home)


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "short by one": lambda content: content[:-1],
    "garbage": lambda content: b"\xff\xfe garbage \x00" * 20,
    "pickle": lambda content: pickle.dumps(Touch()),
    "a web page": lambda content: b"<!doctype html><title>404</title>",
    "zeros": lambda content: bytes(len(content)),
    "doubled": lambda content: content * 2,
}
# A cut CSV or text file is as valid as the whole one.
CUT = ("half", "short by one", "doubled")
PLAUSIBLE = {*product(("curves", "rows", "text"), CUT), ("rows", "empty")}
PLAUSIBLE |= {("text", "empty"), ("text", "a web page")}


@pytest.mark.filterwarnings("ignore")
def test_damaged_file_is_one_line_or_harmless(
    artifacts: dict[str, Artifact], subtests: pytest.Subtests
) -> None:
    assert len(artifacts) * len(DAMAGES) >= 80
    for name, artifact in artifacts.items():
        content, right = artifact.file.read_bytes(), artifact.read()
        for damage, damaged in DAMAGES.items():
            if (name, damage) in PLAUSIBLE:
                continue
            with subtests.test(file=name, damage=damage):
                artifact.file.write_bytes(damaged(content))
                found = outcome(artifact)
                assert isinstance(found, str) or found is None or found == right
                assert not isinstance(found, str) or ("\n" not in found and len(found) < 400)
                assert not Path("touched").exists()
        artifact.file.parent.mkdir(exist_ok=True)
        artifact.file.write_bytes(content)
        assert artifact.read() == right


def change_tensors(file: Path, **changed: torch.Tensor | None) -> None:
    """Change or leave out (None) tensors of a safetensors file; its metadata stays."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {k: v for k, v in (load_file(file) | changed).items() if v is not None}
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata)


def test_load_rejects_other_weights_and_settings(artifacts: dict[str, Artifact]) -> None:
    model, memory = artifacts["model"].file, artifacts["memory"].file
    name, weight = next((k, v) for k, v in load_file(model).items() if v.ndim == 2)
    whole = {file: file.read_bytes() for file in (model, memory, artifacts["settings"].file)}

    def check_error(artifact: str, message: str) -> None:
        assert message in str(outcome(artifacts[artifact]))
        for file, content in whole.items():
            file.write_bytes(content)

    change_tensors(model, **{name: weight * 1.001})
    check_error("model", "are not what was saved: one is damaged or of another model")
    change_tensors(model, **{name: weight.half()})
    check_error("model", "are not what was saved")
    change_tensors(model, **{name: weight * torch.nan})
    check_error("model", "has values that are not finite")
    change_tensors(model, **{name: weight[1:]})
    check_error("model", "must have shape")
    change_tensors(model, **{name: None})
    check_error("model", "missing tensors")
    model.write_bytes(Path("other/infini.safetensors").read_bytes())
    check_error("model", "missing tensors")
    artifacts["settings"].file.write_bytes(Path("other/infini_config.json").read_bytes())
    check_error("settings", "missing tensors")
    settings = json.loads(artifacts["settings"].file.read_text())
    for key, value in {"segment_length": 9, "update": "linear", "position": "rope"}.items():
        artifacts["settings"].file.write_text(json.dumps(settings | {key: value}))
        check_error("settings", "are not what was saved")
    for key, value in {
        "layers": [7],
        "update": "dleta",
        "format": 9,
        "base": 3,
        "depth": 4,
    }.items():
        artifacts["settings"].file.write_text(json.dumps(settings | {key: value}))
        assert isinstance(outcome(artifacts["settings"]), str)
    check_error("settings", "depth")

    memory.write_bytes(Path("memory/other.safetensors").read_bytes())
    check_error("memory", "written by other memory layers")
    key, tensor = next((k, v) for k, v in load_file(memory).items() if k.endswith("matrix"))
    change_tensors(memory, **{key: tensor + 1e-4})
    check_error("memory", "damaged, it is not what was written")
    change_tensors(memory, **{key: None})
    check_error("memory", "damaged, it is not what was written")
    memory.write_bytes(model.read_bytes())
    check_error("memory", "not a memory that infini saved")


def test_load_base_rejects_missing_and_other_weights(
    artifacts: dict[str, Artifact],
) -> None:
    file = artifacts["base"].file
    content, known = file.read_bytes(), file_hashes("base")
    name, weight = next((k, v) for k, v in load_file(file).items() if "dense.weight" in k)
    change_tensors(file, **{name: None})  # transformers would draw it at random
    assert "its weights lack" in outcome(artifacts["base"])
    change_tensors(file, **{name: weight * torch.inf})
    assert "has values that are not finite" in outcome(artifacts["base"])
    change_tensors(file, **{name: weight[:, 1:]})
    assert "base.model" in outcome(artifacts["base"])
    file.write_bytes(content)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    file.write_bytes(flipped)
    assert file_hashes("base") != known  # a dependency of every stage
    torch.nn.init.zeros_((base := load_base("base")).get_input_embeddings().weight)
    with pytest.raises(InputError, match="made for another base"):
        infini.load("saved", base)


def test_read_table_and_read_json_reject_other_content(artifacts: dict[str, Artifact]) -> None:
    losses = pd.DataFrame({"piece": 0, "nats": [1.0, float("nan")], "tokens": 1})
    losses.to_parquet("losses.parquet")
    assert "nats has values that are not finite" in outcome(artifacts["losses"])
    losses.rename(columns={"nats": "loss"}).to_parquet("losses.parquet")
    assert "no column nats;" in outcome(artifacts["losses"])
    for text, message in (("[]", "must hold a JSON object"), ('{"a": 1}', "no short in it")):
        Path("base.json").write_text(text)
        assert message in outcome(artifacts["metrics"])
    for artifact in ("prepared", "settings", "model", "memory", "losses", "curves", "metrics"):
        artifacts[artifact].file.unlink()
        assert isinstance(outcome(artifacts[artifact]), str)


def test_save_to_invalid_path_is_one_line(artifacts: dict[str, Artifact]) -> None:
    base = load_base("base")
    with loaded("saved", base) as model:
        state = cache_of(model(TOKENS))
        for place in ("losses.parquet", "losses.parquet/within", "/proc/nowhere"):
            with pytest.raises(InputError, match="cannot be written"):
                model.save_pretrained(place)
            with pytest.raises(InputError, match="cannot be written"):
                infini.save_memory(state, Path(place) / "memory")


def test_write_json_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new/figures.json"
    write_json(file, {"ppl": 3.0})
    write = Path.write_text

    def full(self: Path, text: str, **options: Any) -> None:
        write(self, text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"ppl": 4.0})
    assert read_json(file) == {"ppl": 3.0}
    assert list(file.parent.iterdir()) == [file]
