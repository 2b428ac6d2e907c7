"""A saved model by AutoModelForCausalLM, AutoTokenizer and AutoConfig, and in a pipeline."""

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
    "beside": {"method": "parallel", "layers": [1], "segment_length": L, "alpha": 0.7},
    "replaced": {"method": "replace", "layers": [0], "segment_length": L, "init": "random"},
    "window": {"method": "window", "window": 8, "sinks": 2, "retained": 4},
}


@pytest.fixture(params=METHODS)
def ours(request: pytest.FixtureRequest, model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    return infini.retrofit(model, **METHODS[request.param]).eval()


@torch.no_grad()
def test_a_saved_model_loads_as_any_other(ours: PreTrainedModel, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "GPTNeoXForCausalLM"
    assert again.infini_config == ours.infini_config
    assert again.dtype == torch.float32
    assert not again.training
    tokens = text(2, 50)
    assert torch.equal(again(tokens).logits, ours(tokens).logits)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "infini"


def test_what_else_is_asked_of_a_model_is_asked_of_its_base(
    ours: PreTrainedModel, tmp_path: Path
) -> None:
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, device_map="cpu", attn_implementation="eager",
        revision="main", trust_remote_code=False,
    )  # fmt: skip
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float64}
    assert again.config._attn_implementation.endswith("eager")
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    with pytest.raises(InputError, match="depth"):
        AutoModelForCausalLM.from_pretrained(tmp_path, depth=2)


def test_a_base_that_has_moved_is_named(
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
        with pytest.raises(InputError, match="a saved memory, not a base"):
            load("../here/ours", base="../here/ours")
    with pytest.raises(InputError, match=r"no model at 'base'.*load the base's own tokenizer"):
        AutoTokenizer.from_pretrained("../here/ours")
    with pytest.raises(InputError, match="dtype: not for a base that is loaded already"):
        infini.load("../here/ours", model, dtype=torch.float64)
    with pytest.raises(InputError, match="base: a model or its folder is needed, got int"):
        infini.load("../here/ours", 3)


def test_the_tokenizer_is_the_bases_or_the_folders_own(
    ours: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    ours.save_pretrained(tmp_path)
    bases, said = AutoTokenizer.from_pretrained(base_folder), sentence(9, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(said).input_ids == bases(said).input_ids
    tokenizer.add_tokens(["<memory>"])
    tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(bases) + 1


def test_a_bases_own_class_draws_no_base_at_random(ours: PreTrainedModel, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="metadata"):
        GPTNeoXForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_pipeline_writes_what_generate_does(
    ours: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    ours.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.padding_side = "left"
    prompts = [sentence(30, 1), sentence(4, 2)]  # beyond the window, and within it
    asked = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    wanted = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        written = ours.generate(**tokens, **asked)[0, tokens.input_ids.shape[1] :]
        wanted.append(tokenizer.decode(written, skip_special_tokens=True))
    assert wanted[0] != wanted[1]
    for model in (ours, str(tmp_path)):
        write = pipeline("text-generation", model=model, tokenizer=tokenizer)
        out = write(prompts, **asked, return_full_text=False)
        assert [texts[0]["generated_text"] for texts in out] == wanted
