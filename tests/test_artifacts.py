"""Files that stages and the library read, damaged: one clear line or the right result.

Never a traceback, never other figures. What DVC hashes (prepared data, models, evaluation) is
checked by its schema as well; what only we write has a hash of its own.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import infini
from infini.corpus.inputs import contents
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import Piece, write
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base, load_tokenizer
from infini.model.loading import loaded
from infini.paths import read_json, read_table
from infini.training.checkpoint import Checkpoint

L = 8
TOKENS = torch.arange(40)[None] * 7 % 300


class Artifact(NamedTuple):
    """A file, and what reading it gives, as something that can be compared."""

    file: Path
    read: Callable[[], Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """One of everything."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(base_folder, folder / "base")
    pieces = [Piece(f"text {i}", 0, [(5 * i + j) % 300 for j in range(16)], 60) for i in range(12)]
    write({"train": pieces}, folder / "samples")
    model = infini.retrofit(load_base(str(folder / "base")), layers=[1], segment_length=L, alpha=1)
    model.save_pretrained(folder / "saved")
    infini.remove(model)
    torch.manual_seed(1)
    other = infini.retrofit(model, layers=[0], segment_length=L, alpha=0.5, update="linear")
    other.save_pretrained(folder / "other")
    infini.save_memory(cache_of(other(TOKENS)), folder / "memory" / "other.safetensors")
    infini.remove(other)
    with torch.no_grad(), loaded(folder / "saved", model) as ours:
        infini.save_memory(cache_of(ours(TOKENS)), folder / "memory" / "memory.safetensors")
    losses = pd.DataFrame({"piece": [0, 0, 1], "nats": [1.0, 2.0, 3.0], "tokens": 1})
    losses.to_parquet(folder / "losses.parquet", write_page_checksum=True)
    losses.to_csv(folder / "passkey.csv", index=False)
    (folder / "base.json").write_text(json.dumps({"short": {"ppl": 3.0}}))
    return folder


@pytest.fixture
def artifacts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """By name, in a folder of the test's own, and a checkpoint."""
    here = tmp_path / "home"
    shutil.copytree(home, here)
    monkeypatch.chdir(here)
    base = load_base("base")

    def pieces() -> Any:
        read = Pieces.load(here / "samples/train.parquet", width=16).within(300)
        return read.tokens.tolist(), read.bytes.tolist(), read.texts.tolist()

    def logits() -> Any:
        with torch.no_grad(), loaded(here / "saved", base) as model:
            return model(TOKENS).logits.tolist()

    def remembered() -> Any:
        with torch.no_grad(), loaded(home / "saved", base) as model:
            state = infini.load_memory(here / "memory/memory.safetensors", model)
            return model(TOKENS, **{CACHE: state}).logits.tolist()

    Checkpoint("toy", "key").save(*state_of_training(3.0), {"fit": {"seconds": 1.0}, "epoch": {}})

    def resumed() -> Any:
        tensors, optimizers = state_of_training(0.0)
        record = Checkpoint("toy", "key").load(tensors, optimizers)
        if record is None:  # it starts over
            assert tensors["w"].tolist() == [0.0, 0.0]
            return None
        return record, tensors["w"].tolist(), str(optimizers[0].state_dict())

    readers: dict[str, tuple[str, Callable[[], Any]]] = {
        "prepared": ("samples/train.parquet", pieces),
        "settings": ("saved/infini_config.json", logits),
        "model": ("saved/infini.safetensors", logits),
        "memory": ("memory/memory.safetensors", remembered),
        "checkpoint": (".checkpoints/toy-key.safetensors", resumed),
        "losses": ("losses.parquet", lambda: read_table(here / "losses.parquet", "nats").to_dict()),
        "passkey": ("passkey.csv", lambda: read_table(here / "passkey.csv", "nats").to_dict()),
        "metrics": ("base.json", lambda: read_json(here / "base.json", "short")),
        "base": ("base/model.safetensors", lambda: load_base("base") and None),
        "config": ("base/config.json", lambda: load_base("base") and None),
        "tokenizer": ("base/tokenizer.json", lambda: load_tokenizer("base") and None),
    }
    return {name: Artifact(here / file, read) for name, (file, read) in readers.items()}


def state_of_training(weight: float) -> tuple[dict[str, Any], list[torch.optim.Optimizer]]:
    """A parameter, and its optimizer after a step."""
    parameter = nn.Parameter(torch.full((2,), weight))
    optimizer = torch.optim.AdamW([parameter], lr=0.0, weight_decay=0.0)
    (parameter.sum() * weight).backward()
    if weight:
        optimizer.step()
    return {"w": parameter}, [optimizer]


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
# A CSV or JSON text has no end that tells.
PLAUSIBLE = {("passkey", "half"), ("passkey", "short by one"), ("passkey", "doubled")}


def outcome(artifact: Artifact) -> Any:
    """What reading gives: a result, or the one line."""
    try:
        return artifact.read()
    except InputError as error:
        return str(error)


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
    "name", ["prepared", "settings", "model", "memory", "checkpoint", "losses"]
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
    content, known = file.read_bytes(), contents("base")
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
    assert contents("base") != known  # a dependency of every stage
    torch.nn.init.zeros_((base := load_base("base")).get_input_embeddings().weight)
    with pytest.raises(InputError, match="made for another base"):
        infini.load("saved", base)


def test_tables_and_figures_of_another_kind_are_refused(artifacts: dict[str, Artifact]) -> None:
    pd.DataFrame({"nats": [1.0, float("nan")]}).to_parquet("losses.parquet")
    assert "nats has values that are not finite" in outcome(artifacts["losses"])
    pd.DataFrame({"loss": [1.0]}).to_parquet("losses.parquet")
    assert "no column nats" in outcome(artifacts["losses"])
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
