"""Toy texts, params, recipes and models."""

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from infini.corpus.pieces import Pieces
from infini.paths import DOCUMENTS
from infini.training.config import LongRecipe, WindowAdapter
from infini.training.long_context import DocumentBatch

WORDS = ("union", "report", "congress", "state", "trade", "peace", "nation", "of", "the", "to")


def sentence(length: int, seed: int) -> str:
    """Return random words, from which a byte-level BPE can learn."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


def write_params(content: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(content))


def read_params() -> dict[str, Any]:
    return yaml.safe_load(Path("params.yaml").read_text())


def stage(name: str, *words: str) -> None:
    """Run a stage's main in this process and folder."""
    importlib.import_module(f"stages.{name}").main(*words)


def some_pieces(lengths: list[int], width: int, seed: int = 0) -> Pieces:
    """Return pieces of random tokens below 300, each a text of its own."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(300, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Pieces(tokens * mask, mask, torch.tensor(lengths), torch.arange(len(lengths)))


def write_documents(lengths: list[int]) -> None:
    """Write the splits train and val, of random tokens below 300, as stage prepare_data does."""
    DOCUMENTS.mkdir(parents=True)
    for seed, split in enumerate(("train", "val")):
        pieces = some_pieces(lengths, max(lengths), seed)
        tokens = [row[:n].tolist() for row, n in zip(pieces.tokens, lengths, strict=True)]
        table = {"text_id": list(map(str, range(len(lengths)))), "tokens": tokens, "bytes": lengths}
        pd.DataFrame(table).to_parquet(DOCUMENTS / f"{split}.parquet")


def batch(*rows: int, window: int | None = None, question_seed: int | None = None) -> DocumentBatch:
    """Return the documents of a step."""
    return DocumentBatch(torch.tensor(rows), window, question_seed)


def long_recipe(**changed: object) -> LongRecipe:
    """Return a recipe of one epoch, gradients through whole documents, with values changed."""
    values = {
        "epochs": 1, "lr": 1e-3, "gate_lr": 1e-2, "batch_size": 1, "hold_out": False,
        "patience": None, "documents": None, "update": "document", "bptt_segments": None,
    }  # fmt: skip
    return LongRecipe(**(values | changed))


def window_recipe(**changed: object) -> WindowAdapter:
    """Return a window adapter of one epoch, with values changed."""
    values = {
        "method": "window", "layer": {"window": 8, "sinks": 2}, "epochs": 1, "lr": 1e-3,
        "gate_lr": 1e-2, "batch_size": 1, "hold_out": True, "patience": None, "documents": None,
        "control": False,
    }  # fmt: skip
    return WindowAdapter(**(values | changed))


def save_pythia_70m(folder: Path, tokenizer: Path) -> None:
    """Save a GPT-NeoX of pythia-70m's shape with random weights, and another's tokenizer."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=2048, max_position_embeddings=2048, rotary_pct=0.25,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def bigram_model(followers: dict[int, int], vocabulary: int = 300) -> PreTrainedModel:
    """Return a model that predicts followers[token] after a token, and nothing after others."""
    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=vocabulary, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=64,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    layer = model.gpt_neox.layers[0]
    for linear in (layer.attention.dense, layer.mlp.dense_4h_to_h):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    model.gpt_neox.embed_in.weight.copy_(torch.eye(vocabulary))
    model.lm_head.weight.zero_()
    for token, follower in followers.items():
        model.lm_head.weight[follower, token] = 1.0
    return model
