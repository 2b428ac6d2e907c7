"""`retrofit` and `remove`: what they change, leave and reject."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

import infini
from architectures import CONFIGS, L, text, tiny
from infini.errors import InputError
from infini.model.architectures import decoder_layers
from infini.model.segmented.run import run_segments

METHODS = [{"method": "parallel"}] + [
    {"method": "replace", "init": init} for init in ("teacher", "random")
]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_parallel_with_alpha_zero_equals_base_bit_for_bit(name: str) -> None:
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@torch.no_grad()
def test_base_in_half_precision_is_not_cast(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny(name).save_pretrained(tmp_path)
    model, tokens = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), text(2, L)
    norm = decoder_layers(model)[0].get_submodule("input_layernorm").float()  # as bases may hold it
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    assert any(b.dtype == torch.float32 for b in buffers.values())  # the rotation's angles
    with torch.autocast("cpu", dtype):
        expected = model(tokens).logits
        for segmented in (True, False):
            infini.retrofit(model, "parallel", [0, 2], L, alpha=0.0, segmented=segmented)
            assert torch.equal(model(tokens).logits, expected)
            assert torch.equal(infini.remove(model)(tokens).logits, expected)
        infini.retrofit(model, "replace", [0, 1], L)
        error = (model(tokens).logits - expected).abs().max()
        assert error < 30 * torch.finfo(dtype).eps * expected.abs().max()
        infini.remove(model)
        assert torch.equal(model(tokens).logits, expected)
    assert norm.weight.dtype == torch.float32
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", METHODS)
def test_only_added_parameters_are_trainable_and_remove_restores_the_base(
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


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"layers must be between 0 and 2, got \[3\]", {"layers": [3]}),
        (r"layers must name at least one layer, got \[\]", {"layers": []}),
        ("layers must be a list of integers, got 0", {"layers": 0}),
        (r"layers must be an integer ≥ 0, got 0.5", {"layers": [0.5]}),
        (r"layers must be an integer ≥ 0, got True", {"layers": [True]}),
        (r"layers must be ≥ 0, got -1", {"layers": [-1]}),
        (r"layers must be an integer ≥ 0, got '1'", {"layers": [0, "1"]}),
        (r"layers must be an integer ≥ 0, got \[0\]", {"layers": [[0]]}),
        ("layers must be a list of integers, got '01'", {"layers": "01"}),
        ("segment_length must be an integer ≥ 1, got 16.0", {"segment_length": 16.0}),
        ("segment_length must be ≥ 1, got 0", {"segment_length": 0}),
        ("alpha must be a finite float32 number, got nan", {"alpha": float("nan")}),
        ("alpha must be a finite float32 number, got 'much'", {"alpha": "much"}),
        (r"alpha must be a finite float32 number, got 1e\+39", {"alpha": 1e39}),
        ("alpha must be a finite float32 number, got a huge integer", {"alpha": 10**5000}),
        ("segmented must be True or False, got 'yes'", {"segmented": "yes"}),
        ("update must be one of 'linear', 'delta', got 'dleta'", {"update": "dleta"}),
        ("local must be one of 'softmax', 'linear', got 'sofmax'", {"local": "sofmax"}),
        ("position must be one of 'none', 'alibi', 'rope', got 'rop'", {"position": "rop"}),
        (
            "method must be one of 'replace', 'parallel', 'window', got 'beside'",
            {"method": "beside"},
        ),
        ("init must be one of 'teacher', 'random'", {"method": "replace", "init": "zero"}),
        (r"segment_length must be ≤ 256 \(the base's context\), got 300", {"segment_length": 300}),
        (
            "local must be 'softmax' with init='teacher', got 'linear'",
            {"method": "replace", "local": "linear"},
        ),
        (
            r"position must be 'rope' \(the base's own\) with init='teacher', got 'none'",
            {"method": "replace", "position": "none"},
        ),
    ],
)
def test_retrofit_rejects_invalid_options(message: str, options: dict[str, object]) -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, **{"segment_length": L, **options})
    assert not hasattr(model, "infini_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("value", [None, "gpt2", torch.nn.Linear(2, 2)])
def test_retrofit_and_remove_reject_other_objects(value: object) -> None:
    for call in (infini.retrofit, infini.remove):
        with pytest.raises(InputError, match=f"model must be .*, got {type(value).__name__}"):
            call(value)


def test_retrofit_rejects_a_second_memory() -> None:
    model = infini.retrofit(tiny("llama"), segment_length=L)
    with pytest.raises(InputError, match="has a memory already"):
        infini.retrofit(model, segment_length=L)


SMALL = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8}  # fmt: skip
ENCODERS: list[PreTrainedModel] = [
    BertForMaskedLM(BertConfig(**SMALL)),
    BertLMHeadModel(BertConfig(**SMALL)),
    RobertaForCausalLM(RobertaConfig(**SMALL)),
    BertGenerationDecoder(BertGenerationConfig(**SMALL)),
    XLNetLMHeadModel(XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=2, d_inner=8)),
    T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, num_layers=1, num_heads=2,
                                        d_ff=8, d_kv=4)),
]  # fmt: skip


@pytest.mark.parametrize("model", ENCODERS, ids=lambda model: type(model).__name__)
def test_retrofit_rejects_models_that_are_not_causal(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=f"^{type(model).__name__}: the model must be a causal"):
        infini.retrofit(model, segment_length=4)


@torch.no_grad()
def test_retrofit_accepts_decoders_of_encoder_families() -> None:
    model = BertLMHeadModel(BertConfig(**SMALL, is_decoder=True)).eval()
    tokens = torch.arange(1, 9)[None]
    expected = model(tokens[:, :4]).logits
    infini.retrofit(model, segment_length=4)
    torch.testing.assert_close(model(tokens).logits[:, :4], expected)


def test_retrofit_rejects_a_model_without_decoder() -> None:
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    model = ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**SMALL, **ids))
    with pytest.raises(InputError, match=r"^ModernBertDecoderForCausalLM: the model has no dec"):
        infini.retrofit(model, segment_length=4)


@pytest.mark.parametrize("method", ["parallel", "replace", "window"])
def test_retrofit_rejects_a_base_without_attention_or_weights(method: str) -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(InputError, match=r"^MambaForCausalLM: the model must have attention"):
        infini.retrofit(mamba, method)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with pytest.raises(InputError, match=r"^LlamaForCausalLM: some weights are on the meta device"):
        infini.retrofit(empty, method)
