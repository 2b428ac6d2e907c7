"""Saved models by AutoModelForCausalLM, AutoTokenizer and AutoConfig, and in a pipeline."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    pipeline,
)

import infini
from architectures import L, text
from infini.errors import InputError
from infini.model.base import load_base
from toy import sentence

METHODS: dict[str, dict[str, Any]] = {
    "parallel": {"method": "parallel", "layers": [1], "segment_length": L, "alpha": 0.7},
    "replace": {"method": "replace", "layers": [0], "segment_length": L, "init": "random"},
    "window": {"method": "window", "window": 8, "sinks": 2, "retained": 4},
}


@pytest.fixture(params=METHODS)
def saved_model(request: pytest.FixtureRequest, model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with each method's memory, to save."""
    torch.manual_seed(1)
    return infini.retrofit(model, **METHODS[request.param]).eval()


@torch.no_grad()
def test_auto_model_equals_the_saved_model(saved_model: PreTrainedModel, tmp_path: Path) -> None:
    saved_model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "GPTNeoXForCausalLM"
    assert again.infini_config == saved_model.infini_config
    assert again.dtype == torch.float32
    assert not again.training
    tokens = text(2, 50)
    assert torch.equal(again(tokens).logits, saved_model(tokens).logits)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "infini"


def test_auto_model_passes_options_to_the_base(
    saved_model: PreTrainedModel, tmp_path: Path
) -> None:
    saved_model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, device_map="cpu", attn_implementation="eager",
        revision="main", trust_remote_code=False,
    )  # fmt: skip
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float64}
    assert again.config._attn_implementation.endswith("eager")
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    with pytest.raises(InputError, match="depth"):
        AutoModelForCausalLM.from_pretrained(tmp_path, depth=2)


def test_load_names_a_base_that_has_moved(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here/base").symlink_to(base_folder)
    monkeypatch.chdir(tmp_path / "here")
    base = load_base("base")
    infini.retrofit(base, "parallel", [1], L).save_pretrained("ours")
    monkeypatch.chdir(tmp_path / "there")
    load: Callable[..., PreTrainedModel]
    for load in (infini.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=r"no model at 'base'.*say .* base is: base=FOLDER"):
            load("../here/ours")
        assert load("../here/ours", base="../here/base").infini_config["method"] == "parallel"
        assert load("../here/ours", base=base_folder).infini_config["method"] == "parallel"
        with pytest.raises(InputError, match="is a saved memory, not a base"):
            load("../here/ours", base="../here/ours")
    with pytest.raises(InputError, match=r"no model at 'base'.*load the base's own tokenizer"):
        AutoTokenizer.from_pretrained("../here/ours")
    with pytest.raises(InputError, match="dtype: not an option for a base that is loaded already"):
        infini.load("../here/ours", model, dtype=torch.float64)
    with pytest.raises(InputError, match="base must be a model or its folder, got int"):
        infini.load("../here/ours", 3)


def test_auto_tokenizer_is_the_folders_own_or_the_bases(
    saved_model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    saved_model.save_pretrained(tmp_path)
    base_tokenizer, words = AutoTokenizer.from_pretrained(base_folder), sentence(9, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(words).input_ids == base_tokenizer(words).input_ids
    tokenizer.add_tokens(["<memory>"])
    tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(base_tokenizer) + 1


def test_the_bases_own_class_does_not_load_a_saved_model(
    saved_model: PreTrainedModel, tmp_path: Path
) -> None:
    saved_model.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="metadata"):
        GPTNeoXForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_pipeline_equals_generate(
    saved_model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    saved_model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.padding_side = "left"
    prompts = [sentence(30, 1), sentence(4, 2)]  # beyond the window, and within it
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    wanted = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        written = saved_model.generate(**tokens, **options)[0, tokens.input_ids.shape[1] :]
        wanted.append(tokenizer.decode(written, skip_special_tokens=True))
    assert wanted[0] != wanted[1]
    for model in (saved_model, str(tmp_path)):
        write = pipeline("text-generation", model=model, tokenizer=tokenizer)
        out = write(prompts, **options, return_full_text=False)
        assert [texts[0]["generated_text"] for texts in out] == wanted


AUTO = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"


def run_python(code: str) -> list[str]:
    """Return the words that a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "imports",
    [
        f"import infini\n{AUTO}",
        f"{AUTO}import infini\n",
        f"import transformers, infini\n{AUTO}",
        f"from infini.errors import InputError\n{AUTO}",
    ],
)
def test_auto_model_in_a_fresh_process(
    imports: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L).save_pretrained(tmp_path)
    code = f"{imports}model = AutoModelForCausalLM.from_pretrained('{tmp_path}')\n"
    code += f"print(model.infini_config['method'], AutoTokenizer.from_pretrained('{tmp_path}'))"
    assert run_python(code)[0] == "parallel"
