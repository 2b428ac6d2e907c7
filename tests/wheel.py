"""`make wheel-test`: a model saved here has the same logits where only the wheel is installed.

`wheel.py save FOLDER` in this environment, `wheel.py load FOLDER` in the empty one.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import infini

ROOT = Path(__file__).resolve().parents[1]
IDS = torch.arange(3, 303)[None]  # longer than a window of 64


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of IDS: (1, 300, vocabulary)."""
    with torch.no_grad():
        return model(IDS).logits


def save(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(ROOT / "data/base")
    torch.manual_seed(0)
    model = infini.retrofit(base, "window", window=64, retained=32).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_file({"logits": logits(model).contiguous()}, folder / "logits.safetensors")


def load(folder: Path) -> None:
    assert not Path(infini.__file__).is_relative_to(ROOT / "infini"), infini.__file__
    assert not [name for name in ("dvc", "pandas", "datasets", "pytest") if find_spec(name)]
    expected = load_file(folder / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits(infini.load(folder)), expected)
    print(f"1 passed: {folder}, loaded by {infini.__file__}")


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
