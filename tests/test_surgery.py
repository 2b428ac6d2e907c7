"""The retrofit: what it changes, what it leaves, and what it saves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM, MistralForCausalLM, PreTrainedModel

import infini
from architectures import CONFIGS, L, text, tiny
from infini.base import load_model
from infini.errors import InputError
from infini.params import Base
from infini.segments import run_segments

DATA_BASE = Path(__file__).parents[1] / "data/base"
METHODS = [{"method": "parallel"}] + [
    {"method": "replace", "init": init} for init in ("teacher", "random")
]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_parallel_at_alpha_zero_is_the_base_bit_for_bit(name: str) -> None:
    model, tokens = tiny(name), text(2, 3 * L)
    within, full = model(tokens[:, :L]).logits, model(tokens).logits
    segments, _ = run_segments(model, tokens, L)
    infini.retrofit(model, "parallel", [0, 2], L, alpha=0.0)
    assert torch.equal(model(tokens[:, :L]).logits, within)
    assert torch.equal(model.get_decoder()(tokens, use_cache=False).last_hidden_state, segments)
    for name, tensor in model.named_parameters():
        if name.endswith("alpha"):
            tensor.fill_(0.5)
    assert not torch.equal(model(tokens[:, :L]).logits, within)
    assert torch.equal(infini.remove(model)(tokens).logits, full)

    infini.retrofit(model, "parallel", [0, 2], L, alpha=0.0, segmented=False)
    assert torch.equal(model(tokens).logits, full)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("segmented", [True, False])
@torch.no_grad()
def test_a_taught_replacement_is_the_base_within_a_segment(name: str, segmented: bool) -> None:
    model, tokens = tiny(name), text(2, 2 * L)
    within = model(tokens[:, :L]).logits
    infini.retrofit(model, "replace", [0, 2], L, init="teacher", segmented=segmented)
    torch.testing.assert_close(model(tokens[:, :L]).logits, within, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens).logits[:, :L], within, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_taught_replacement_is_the_embedded_base_within_a_segment() -> None:
    model = load_model(Base(model=str(DATA_BASE)))
    tokens = torch.randint(model.config.vocab_size, (2, 256))
    expected = model(tokens).logits
    every = list(range(model.config.num_hidden_layers))
    infini.retrofit(model, "replace", every, 256, init="teacher")
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_any_causal_lm_takes_a_parallel_memory() -> None:
    config = BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=4)
    model, tokens = BloomForCausalLM(config).eval(), text(2, 3 * L)
    within = model(tokens[:, :L]).logits
    infini.retrofit(model, "parallel", [1], L)
    assert torch.equal(model(tokens[:, :L]).logits, within)
    assert model(tokens).logits.shape == (2, 3 * L, 50)
    infini.remove(model)
    with pytest.raises(InputError, match=r'method="replace" knows gpt_neox, .* for bloom use'):
        infini.retrofit(model, "replace", [1], L)
    with pytest.raises(InputError, match="position: the base has no rotary embedding"):
        infini.retrofit(model, "parallel", [1], L, position="rope")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", METHODS)
def test_exactly_ours_is_trainable_and_removal_gives_the_base_back(
    name: str, options: dict[str, str]
) -> None:
    model = tiny(name)
    kind, parameters = type(model), {n: p.clone() for n, p in model.named_parameters()}
    frozen = next(iter(parameters))
    model.get_parameter(frozen).requires_grad_(False)
    infini.retrofit(model, layers=[1], segment_length=L, **options)
    assert isinstance(model, kind)
    assert type(model).__name__ == kind.__name__
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    added = {id(p) for n, p in model.named_parameters() if ".original." not in n} - {
        id(p) for p in infini.remove(model).parameters()
    }
    assert trainable == added
    assert type(model) is kind
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(torch.equal(after[n], p) for n, p in parameters.items())
    assert {n for n, p in after.items() if not p.requires_grad} == {frozen}


@pytest.mark.parametrize("options", METHODS)
@torch.no_grad()
def test_save_and_load_give_the_same_bits(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    torch.manual_seed(3)
    infini.retrofit(model, layers=[1], segment_length=L, update="linear", alpha=0.3, **options)
    model.save_pretrained(tmp_path)
    files = {"README.md", "infini_config.json", "infini.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == files
    card = (tmp_path / "README.md").read_text()
    assert f"base_model: {base_folder}" in card
    assert "| memory update | linear |" in card
    assert all(name.startswith("layers.1.") for name in load_file(tmp_path / "infini.safetensors"))
    again = infini.load(tmp_path)  # finds the base by its recorded name
    tokens = text(2, 50)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_load_refuses_what_does_not_fit(
    model: PreTrainedModel, base_folder: Path, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L)
    model.save_pretrained(tmp_path)
    base = load_model(Base(model=str(base_folder)))
    tensors = load_file(tmp_path / "infini.safetensors")

    def refused(message: str, **changed: torch.Tensor | None) -> None:
        content = {k: v for k, v in (tensors | changed).items() if v is not None}
        save_file(content, tmp_path / "infini.safetensors")
        with pytest.raises(InputError, match=message):
            infini.load(tmp_path, base)

    name = "layers.1.alpha"
    refused(f"missing tensors: {name}", **{name: None})
    refused("unexpected tensors: more", more=torch.zeros(1))
    refused(r"alpha has shape \(2,\), \(\) is needed", **{name: torch.zeros(2)})
    (tmp_path / "infini.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not readable"):
        infini.load(tmp_path, base)
    torch.nn.init.zeros_(base.get_input_embeddings().weight)
    refused("made for another base")
    config = json.loads((tmp_path / "infini_config.json").read_text())
    (tmp_path / "infini_config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(InputError, match="format 1 is needed"):
        infini.load(tmp_path, base)
    with pytest.raises(InputError, match=r"no infini_config.json"):
        infini.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"layers \[3\] do not exist, the base has 0 to 2", {"layers": [3]}),
        ("layers: at least one", {"layers": []}),
        ("method: one of 'replace', 'parallel' is needed, got 'beside'", {"method": "beside"}),
        ("init: one of 'teacher', 'random'", {"init": "zero"}),
        (r"segment_length: 1 to 256 \(the base's context\), got 300", {"segment_length": 300}),
        ('"teacher" keeps the base\'s own', {"method": "replace", "local": "linear"}),
        ('"teacher" keeps the base\'s own', {"method": "replace", "position": "none"}),
    ],
)
def test_retrofit_refuses_what_cannot_be(message: str, options: dict[str, object]) -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, **{"segment_length": L, **options})


def test_retrofit_refuses_a_second_memory_and_short_windows() -> None:
    model = infini.retrofit(tiny("llama"), segment_length=L)
    with pytest.raises(InputError, match="has a memory already"):
        infini.retrofit(model, segment_length=L)
    config = CONFIGS["mistral"].__class__(**CONFIGS["mistral"].to_dict() | {"sliding_window": 8})
    with pytest.raises(InputError, match="longer than the base's sliding window, 8"):
        infini.retrofit(MistralForCausalLM(config), "replace", segment_length=L)
