"""The retrofit: what it changes, what it leaves, and what it saves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

import infini
from infini.base import load_model
from infini.errors import InputError
from infini.params import Base, Placement
from infini.segments import run_segments

L = 16
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONFIGS = {
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2),
}
TOKENS = torch.arange(2 * 3 * L).remainder(50).view(2, 3 * L)


@pytest.mark.parametrize("name", CONFIGS)
def test_parallel_at_alpha_zero_is_the_base_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        alone = model(TOKENS[:, :L]).logits
        segments, _ = run_segments(model, TOKENS, L)
        infini.retrofit(model, "parallel", Placement(layers=[0, 2]), L, alpha=0.0)
        assert torch.equal(model(TOKENS[:, :L]).logits, alone)
        assert torch.equal(run_segments(model, TOKENS, L)[0], segments)
        for name, tensor in model.named_parameters():
            if name.endswith("alpha"):
                tensor.fill_(0.5)
        assert not torch.equal(model(TOKENS[:, :L]).logits, alone)
        infini.remove(model)
        assert torch.equal(model(TOKENS[:, :L]).logits, alone)


def test_exactly_ours_is_trainable(model: PreTrainedModel) -> None:
    attention = [f"attention.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")] + [
        "attention.beta"
    ]
    infini.retrofit(model, "parallel", Placement(layers=[1]), L)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    names = [*attention, "norm.weight", "norm.bias", "alpha"]
    assert trainable == {f"gpt_neox.layers.1.{name}" for name in names}

    infini.remove(model)
    infini.retrofit(model, "replace", Placement(layers=[0]), L)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    names = [f"layer.attention.{name}" for name in attention]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        names += [f"layer.{norm}.weight", f"layer.{norm}.bias"]
    for dense in ("dense_h_to_4h", "dense_4h_to_h"):
        names += [f"layer.mlp.{dense}.weight", f"layer.mlp.{dense}.bias"]
    assert trainable == {f"gpt_neox.layers.0.{name}" for name in names}


@pytest.mark.parametrize("method", ["parallel", "replace"])
def test_streaming_by_chunks_is_the_whole_document(model: PreTrainedModel, method: str) -> None:
    torch.manual_seed(0)
    infini.retrofit(model, method, Placement(layers=[0, 1]), L, alpha=0.7)
    with torch.no_grad():
        whole, _ = run_segments(model, TOKENS, L)
        states, parts = None, []
        for chunk in TOKENS.split([2 * L, L], 1):
            hidden, states = run_segments(model, chunk, L, states)
            parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    _, states = run_segments(model, TOKENS[:, :5], L)
    with pytest.raises(ValueError, match="must be a multiple of 16 tokens"):
        run_segments(model, TOKENS[:, 5:], L, states)


def test_gradient_from_a_later_segment_reaches_what_an_earlier_one_wrote(
    model: PreTrainedModel,
) -> None:
    infini.retrofit(model, "parallel", Placement(layers=[0]), L, alpha=1.0)
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    tokens = TOKENS.clone()
    tokens[:, 0] = 299  # occurs nowhere else
    hidden, _ = run_segments(model, tokens, L)
    hidden[:, 2 * L :].sum().backward()
    assert embeddings.grad[299].abs().sum() > 0


@pytest.mark.parametrize("method", ["parallel", "replace"])
def test_save_and_load_give_the_same_bits(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path, method: str
) -> None:
    torch.manual_seed(3)
    infini.retrofit(model, method, Placement(layers=[1], update="linear"), L, alpha=0.3)
    infini.save(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"infini_config.json", "infini.safetensors"}
    again = infini.load(tmp_path)  # finds the base by its recorded name
    with torch.no_grad():
        assert torch.equal(run_segments(again, TOKENS, L)[0], run_segments(model, TOKENS, L)[0])


def test_load_refuses_what_does_not_fit(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", Placement(layers=[1]), L)
    infini.save(model, tmp_path)
    base = load_model(Base(model=str(base_folder)))
    tensors = load_file(tmp_path / "infini.safetensors")

    def refused(message: str, **changed: torch.Tensor | None) -> None:
        content = {k: v for k, v in (tensors | changed).items() if v is not None}
        save_file(content, tmp_path / "infini.safetensors")
        with pytest.raises(InputError, match=message):
            infini.load(tmp_path, infini.remove(base))

    name = "layers.1.alpha"
    refused(f"missing or unexpected tensors: {name}", **{name: None})
    refused("missing or unexpected tensors: more", more=torch.zeros(1))
    refused(r"alpha has shape \(2,\), \(\) is needed", **{name: torch.zeros(2)})
    torch.nn.init.zeros_(base.get_input_embeddings().weight)
    refused("made for another base")
    with pytest.raises(InputError, match=r"no infini_config.json"):
        infini.load(tmp_path / "nowhere")


def test_retrofit_refuses_what_cannot_be(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"layers \[2\] do not exist, the base has 0 to 1"):
        infini.retrofit(model, "parallel", Placement(layers=[2]), L)
    infini.retrofit(model, "parallel", Placement(layers=[0]), L)
    with pytest.raises(InputError, match="has a memory already"):
        infini.retrofit(model, "parallel", Placement(layers=[1]), L)


def test_the_config_names_the_base(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", Placement(layers=[0]), L)
    infini.save(model, tmp_path)
    config = json.loads((tmp_path / "infini_config.json").read_text())
    assert config["base"]["model"] == str(base_folder)
    assert config["placement"]["layers"] == [0]
