"""Toy text and toy params."""

import importlib
from pathlib import Path
from typing import Any

import torch
import yaml

WORDS = ("union", "report", "congress", "state", "trade", "peace", "nation", "of", "the", "to")


def sentence(length: int, seed: int) -> str:
    """Words drawn at random: text that a byte-level BPE can learn from."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


def write_params(content: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(content))


def read_params() -> dict[str, Any]:
    return yaml.safe_load(Path("params.yaml").read_text())


def stage(name: str, *words: str) -> None:
    """A stage's main, in this process and folder."""
    importlib.import_module(f"stages.{name}").main(*words)
