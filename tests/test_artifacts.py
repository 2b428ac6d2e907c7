"""Files that stages and the library read, damaged: one clear line or the right result.

Never a traceback, never other figures. What DVC hashes (prepared data, models, evaluation) is
checked by its schema as well; what only we write has a hash of its own.
"""

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
    """One of everything."""
    folder = tmp_path_factory.mktemp("home")
    make(folder, base_folder)
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


@pytest.fixture
def artifacts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """By name, in a folder of the test's own."""
    here = tmp_path / "home"
    shutil.copytree(home, here)
    monkeypatch.chdir(here)
    return toy_artifacts.artifacts(here, home)


class Malice:
    """What a pickle does when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "short by one": lambda content: content[:-1],
    "garbage": lambda content: b"\xff\xfe garbage \x00" * 20,
    "pickle": lambda content: pickle.dumps(Malice()),
    "a web page": lambda content: b"<!doctype html><title>404</title>",
    "zeros": lambda content: bytes(len(content)),
    "doubled": lambda content: content * 2,
}
# A CSV or a text has no end that tells.
CUT = ("half", "short by one", "doubled")
PLAUSIBLE = {*product(("passkey", "rows", "text"), CUT), ("rows", "empty")}
PLAUSIBLE |= {("text", "empty"), ("text", "a web page")}


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_one_line_or_change_nothing(
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


@pytest.mark.parametrize(
    "name", ["prepared", "settings", "model", "memory", "window", "checkpoint", "losses"]
)
def test_a_flipped_bit_is_seen_or_changes_nothing(
    artifacts: dict[str, Artifact], name: str
) -> None:
    artifact = artifacts[name]
    content, right, seen = artifact.file.read_bytes(), artifact.read(), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        at = int(torch.randint(8 * len(content), (1,), generator=generator))
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        artifact.file.parent.mkdir(exist_ok=True)
        artifact.file.write_bytes(flipped)
        found = outcome(artifact)
        assert isinstance(found, str) or found is None or found == right, (at, found)
        seen += found != right
    assert seen >= 10


def saved_again(file: Path, **changed: torch.Tensor | None) -> None:
    """A safetensors file with some tensors changed or left out, its metadata as it was."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {k: v for k, v in (load_file(file) | changed).items() if v is not None}
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata)


def test_other_weights_and_settings_are_refused(artifacts: dict[str, Artifact]) -> None:
    model, memory = artifacts["model"].file, artifacts["memory"].file
    name, weight = next((k, v) for k, v in load_file(model).items() if v.ndim == 2)
    whole = {file: file.read_bytes() for file in (model, memory, artifacts["settings"].file)}

    def refused(artifact: str, message: str) -> None:
        assert message in str(outcome(artifacts[artifact]))
        for file, content in whole.items():
            file.write_bytes(content)

    saved_again(model, **{name: weight * 1.001})
    refused("model", "are not what was saved: one is damaged or of another model")
    saved_again(model, **{name: weight.half()})
    refused("model", "are not what was saved")
    saved_again(model, **{name: weight * torch.nan})
    refused("model", "has values that are not finite")
    saved_again(model, **{name: weight[1:]})
    refused("model", "is needed")
    saved_again(model, **{name: None})
    refused("model", "missing tensors")
    model.write_bytes(Path("other/infini.safetensors").read_bytes())
    refused("model", "missing tensors")
    artifacts["settings"].file.write_bytes(Path("other/infini_config.json").read_bytes())
    refused("settings", "missing tensors")
    settings = json.loads(artifacts["settings"].file.read_text())
    for key, value in {"segment_length": 9, "update": "linear", "position": "rope"}.items():
        artifacts["settings"].file.write_text(json.dumps(settings | {key: value}))
        refused("settings", "are not what was saved")
    for key, value in {
        "layers": [7],
        "update": "dleta",
        "format": 2,
        "base": 3,
        "depth": 4,
    }.items():
        artifacts["settings"].file.write_text(json.dumps(settings | {key: value}))
        assert isinstance(outcome(artifacts["settings"]), str)
    refused("settings", "depth")

    memory.write_bytes(Path("memory/other.safetensors").read_bytes())
    refused("memory", "written by other memory layers")
    key, tensor = next((k, v) for k, v in load_file(memory).items() if k.endswith("matrix"))
    saved_again(memory, **{key: tensor + 1e-4})
    refused("memory", "damaged, it is not what was written")
    saved_again(memory, **{key: None})
    refused("memory", "damaged, it is not what was written")
    memory.write_bytes(model.read_bytes())
    refused("memory", "not a memory that infini saved")


def test_a_base_that_lacks_weights_or_has_others_is_refused(
    artifacts: dict[str, Artifact],
) -> None:
    file = artifacts["base"].file
    content, known = file.read_bytes(), file_hashes("base")
    name, weight = next((k, v) for k, v in load_file(file).items() if "dense.weight" in k)
    saved_again(file, **{name: None})  # transformers would draw it at random
    assert "its weights lack" in outcome(artifacts["base"])
    saved_again(file, **{name: weight * torch.inf})
    assert "has values that are not finite" in outcome(artifacts["base"])
    saved_again(file, **{name: weight[:, 1:]})
    assert "base.model" in outcome(artifacts["base"])
    file.write_bytes(content)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    file.write_bytes(flipped)
    assert file_hashes("base") != known  # a dependency of every stage
    torch.nn.init.zeros_((base := load_base("base")).get_input_embeddings().weight)
    with pytest.raises(InputError, match="made for another base"):
        infini.load("saved", base)


def test_tables_and_figures_of_another_kind_are_refused(artifacts: dict[str, Artifact]) -> None:
    losses = pd.DataFrame({"piece": 0, "nats": [1.0, float("nan")], "tokens": 1})
    losses.to_parquet("losses.parquet")
    assert "nats has values that are not finite" in outcome(artifacts["losses"])
    losses.rename(columns={"nats": "loss"}).to_parquet("losses.parquet")
    assert "no column nats;" in outcome(artifacts["losses"])
    for text, message in (("[]", "holds a list"), ('{"a": 1}', "no short in it")):
        Path("base.json").write_text(text)
        assert message in outcome(artifacts["metrics"])
    for artifact in ("prepared", "settings", "model", "memory", "losses", "passkey", "metrics"):
        artifacts[artifact].file.unlink()
        assert isinstance(outcome(artifacts[artifact]), str)


def test_what_cannot_be_written_is_one_line(artifacts: dict[str, Artifact]) -> None:
    base = load_base("base")
    with loaded("saved", base) as model:
        state = cache_of(model(TOKENS))
        for place in ("losses.parquet", "losses.parquet/within", "/proc/nowhere"):
            with pytest.raises(InputError, match="cannot be written"):
                model.save_pretrained(place)
            with pytest.raises(InputError, match="cannot be written"):
                infini.save_memory(state, Path(place) / "memory")


def test_figures_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
