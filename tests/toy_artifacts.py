"""One of every file that stages and the library read, and how to read it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

import infini
from infini import params
from infini.corpus.pieces import Pieces
from infini.corpus.prepare import Piece, write_pieces
from infini.corpus.sources import read_texts
from infini.errors import InputError
from infini.files import read_json, read_table
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base, load_tokenizer
from infini.model.loading import loaded
from infini.training.checkpoint import Checkpoint

L = 8
TOKENS = torch.arange(40)[None] * 7 % 300


class Artifact(NamedTuple):
    """A file, and a function that reads it into something comparable."""

    file: Path
    read: Callable[[], Any]
    # it has hashes, so that every damage is found
    sealed: bool


def make(folder: Path, base_folder: Path) -> None:
    """Write one of every file to a folder, but the checkpoint, which `artifacts` writes."""
    shutil.copytree(base_folder, folder / "base")
    pieces = [Piece(f"text {i}", 0, [(5 * i + j) % 300 for j in range(16)], 60) for i in range(12)]
    write_pieces({"train": pieces}, folder / "samples")
    model = infini.retrofit(load_base(str(folder / "base")), layers=[1], segment_length=L, alpha=1)
    model.save_pretrained(folder / "saved")
    infini.remove(model)
    torch.manual_seed(1)
    other = infini.retrofit(model, layers=[0], segment_length=L, alpha=0.5, update="linear")
    other.save_pretrained(folder / "other")
    infini.save_memory(cache_of(other(TOKENS)), folder / "memory" / "other.safetensors")
    infini.remove(other)
    window = infini.retrofit(model, "window", window=6, sinks=2, retained=2)
    window.save_pretrained(folder / "window")
    infini.remove(window)
    with torch.no_grad():
        for name, file in (("saved", "memory"), ("window", "window")):
            with loaded(folder / name, model) as ours:
                infini.save_memory(cache_of(ours(TOKENS)), folder / f"memory/{file}.safetensors")
    losses = pd.DataFrame({"piece": [0, 0, 1], "nats": [1.0, 2.0, 3.0], "tokens": 1})
    losses.to_parquet(folder / "losses.parquet", write_page_checksum=True)
    losses.to_csv(folder / "curves.csv", index=False)
    (folder / "base.json").write_text(json.dumps({"short": {"ppl": 3.0}}))
    rows = [{"id": i, "text": f"Text {i} — “so”.\n"} for i in range(3)]
    (folder / "rows").mkdir()
    (folder / "rows/a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("A text — in “two”\nlines.\n")


def state_of_training(weight: float) -> tuple[dict[str, Any], list[torch.optim.Optimizer]]:
    """Return a parameter, and its optimizer after a step."""
    parameter = nn.Parameter(torch.full((2,), weight))
    optimizer = torch.optim.AdamW([parameter], lr=0.0, weight_decay=0.0)
    (parameter.sum() * weight).backward()
    if weight:
        optimizer.step()
    return {"w": parameter}, [optimizer]


def table(here: Path, name: str) -> Callable[[], Any]:
    return lambda: read_table(here / name, "piece", "nats", "tokens").to_dict()


def plain(here: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return file and reader, by name, of the files without a hash."""
    return {
        "curves": ("curves.csv", table(here, "curves.csv")),
        "metrics": ("base.json", lambda: read_json(here / "base.json", "short")),
        "base": ("base/model.safetensors", lambda: load_base("base") and None),
        "config": ("base/config.json", lambda: load_base("base") and None),
        "tokenizer": ("base/tokenizer.json", lambda: load_tokenizer("base") and None),
        "tokens": ("base/tokenizer_config.json", lambda: load_tokenizer("base") and None),
        "rows": ("rows/a.jsonl", lambda: list(read_texts("rows"))),
        "text": ("texts/a.txt", lambda: list(read_texts("texts"))),
        "params": ("params.yaml", lambda: params.load_params() and None),
    }


def artifacts(here: Path, home: Path) -> dict[str, Artifact]:
    """Return all files by name in `here`, a copy of `home` and the working directory."""
    base = load_base("base")

    def pieces() -> Any:
        read = Pieces.load(here / "samples/train.parquet", width=16).within(300)
        return read.tokens.tolist(), read.bytes.tolist(), read.texts.tolist()

    def logits(name: str) -> Callable[[], Any]:
        def read() -> Any:
            with torch.no_grad(), loaded(here / name, base) as model:
                return model(TOKENS).logits.tolist()

        return read

    def logits_after(name: str, file: str) -> Callable[[], Any]:
        def read() -> Any:
            with torch.no_grad(), loaded(home / name, base) as model:
                state = infini.load_memory(here / file, model)
                return model(TOKENS, **{CACHE: state}).logits.tolist()

        return read

    Checkpoint("toy", "key").save(*state_of_training(3.0), {"fit": {"seconds": 1.0}, "epoch": {}})

    def checkpoint() -> Any:
        tensors, optimizers = state_of_training(0.0)
        record = Checkpoint("toy", "key").load(tensors, optimizers)
        if record is None:  # it starts over
            assert tensors["w"].tolist() == [0.0, 0.0]
            return None
        return record, tensors["w"].tolist(), str(optimizers[0].state_dict())

    sealed: dict[str, tuple[str, Callable[[], Any]]] = {
        "prepared": ("samples/train.parquet", pieces),
        "settings": ("saved/infini_config.json", logits("saved")),
        "model": ("saved/infini.safetensors", logits("saved")),
        "window settings": ("window/infini_config.json", logits("window")),
        "window model": ("window/infini.safetensors", logits("window")),
        "memory": ("memory/memory.safetensors", logits_after("saved", "memory/memory.safetensors")),
        "window": (
            "memory/window.safetensors",
            logits_after("window", "memory/window.safetensors"),
        ),
        "checkpoint": (".checkpoints/toy-key.safetensors", checkpoint),
        "losses": ("losses.parquet", table(here, "losses.parquet")),
    }
    return {
        name: Artifact(here / file, read, name in sealed)
        for name, (file, read) in (sealed | plain(here)).items()
    }


def outcome(artifact: Artifact) -> Any:
    """Return what reading gives, or the error message."""
    try:
        return artifact.read()
    except InputError as error:
        return str(error)
