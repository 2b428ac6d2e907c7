"""Fixtures of all tests; one thread, so that sums have one order, and no hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from infini.corpus.splits import Text
from infini.model.base import load_base
from infini.training.pretraining import train_tokenizer
from toy import sentence, write_params

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a two-layer GPT-NeoX with random weights and a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([Text(str(i), sentence(200, i)) for i in range(4)], 300, 64)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(base_folder: Path) -> PreTrainedModel:
    """Return the base of `base_folder`."""
    return load_base(str(base_folder))


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a project of toy size: a params.yaml and a folder of text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for i in range(24):
        (tmp_path / "text" / f"{i}.txt").write_text(sentence(80 + i, 100 + i))
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["base"]["model"] = str(base_folder)
    content["data"] |= {
        "corpus": "text",
        "shares": {"base": 0.0, "train": 0.6, "val": 0.2, "test": 0.2},
        "samples": 12,
        "documents": 6,
        "document_length": 64,
        "segment_length": 16,
        "test": {"samples": 6, "documents": 2},
    }
    content["on_demand"] = []
    for version in content["replacements"].values():
        if version["distill"] is not None:
            version["distill"]["epochs"] = 3
        version["finetune"] |= {"epochs": 2, "documents": 3, "lr": 1.0e-3}
    content["replacements"]["v4"]["layer"]["layers"] = [0, 1]
    for version in content["adapters"].values():
        version |= {"epochs": 2, "documents": None}
    content["adapters"]["v5"]["layer"] |= {"window": 8, "sinks": 2}
    for section in ("policies", "policy_curve"):
        content[section] = {"names": [], "budgets": []}
    content["ruler"] = {"policies": [], "budgets": []}
    content["evaluate"] = {
        "short": {"samples": 6},
        "documents": 2,
        "double_shift": {"documents": 2},
        "full": {"context": 32, "stride": 8},
        "window": {"sizes": [4, 16], "sinks": 2},
        "passkey": {"lengths": [10, 12], "depths": [0.0, 1.0], "samples": 1},
        "recall": {"pairs": [1, 2], "questions": 1, "segments": 10, "samples": 1},
    }
    content["cost"] = {"lengths": [32, 64], "repeats": 1}
    write_params(content)
    return tmp_path
