"""A retrofitted model as its user meets it: any length, caches, generate, training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import infini
from architectures import CONFIGS, L, text, tiny
from infini.errors import InputError
from infini.segments import run_segments

OPTIONS: list[dict[str, Any]] = [
    {"method": "parallel", "layers": [0, 2], "alpha": 0.7},
    {"method": "replace", "layers": [0, 1], "init": "teacher"},
    {"method": "replace", "layers": [0], "init": "random", "local": "linear"},
    {"method": "parallel", "layers": [1], "alpha": 0.7, "segmented": False},
    {"method": "replace", "layers": [0], "init": "teacher", "segmented": False},
]
GREEDY = {"max_new_tokens": L + 4, "do_sample": False}


def retrofitted(name: str, options: dict[str, Any]) -> PreTrainedModel:
    model = infini.retrofit(tiny(name), segment_length=L, **options)
    for key, parameter in model.named_parameters():
        if key.endswith("beta"):
            parameter.data.normal_()
    return model


@pytest.fixture(params=[(n, o) for n in CONFIGS for o in OPTIONS], ids=lambda p: f"{p[0]}-{p[1]}")
def ours(request: pytest.FixtureRequest) -> PreTrainedModel:
    return retrofitted(*request.param)


@torch.no_grad()
def test_chunks_with_past_key_values_equal_the_whole(ours: PreTrainedModel) -> None:
    tokens = text(2, 53)
    whole = ours(tokens, use_cache=False, output_hidden_states=True)
    cache, parts, hidden = None, [], []
    for chunk in tokens.split([3, 20, 1, 1, 28], 1):
        out = ours(chunk, past_key_values=cache, output_hidden_states=True)
        cache = out.past_key_values
        parts.append(out.logits)
        hidden.append(out.hidden_states[-1])
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=1e-4, atol=1e-5)
    last = whole.hidden_states[-1]
    torch.testing.assert_close(torch.cat(hidden, 1), last, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == 53


@torch.no_grad()
def test_generate_agrees_with_forward_token_for_token(ours: PreTrainedModel) -> None:
    tokens = text(2, 37)
    generated = ours.generate(tokens, **GREEDY)
    predicted = ours(generated, use_cache=False).logits[:, 36:-1].argmax(-1)
    assert torch.equal(predicted, generated[:, 37:])
    assert torch.equal(ours.generate(tokens, use_cache=False, **GREEDY), generated)


@torch.no_grad()
def test_a_padded_batch_generates_what_each_text_does_alone(ours: PreTrainedModel) -> None:
    lengths, width = [5, 37, 28], 37
    texts = [text(1, n) for n in lengths]
    batch = torch.cat([torch.nn.functional.pad(t, (width - t.shape[1], 0)) for t in texts])
    together = ours.generate(batch, attention_mask=(batch != 0).long(), **GREEDY)
    for row, alone in zip(together, texts, strict=True):
        assert torch.equal(row[width:], ours.generate(alone, **GREEDY)[0, alone.shape[1] :])
    beams = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    cached = ours.generate(texts[1], **beams)
    assert torch.equal(cached, ours.generate(texts[1], use_cache=False, **beams))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_logits(side: str) -> None:
    model = retrofitted("llama", OPTIONS[0])
    lengths, width = [50, 21, 16], 50
    batch, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width)
    for row, n in enumerate(lengths):
        part = slice(width - n, None) if side == "left" else slice(n)
        batch[row, part], mask[row, part] = text(1, n)[0], 1
    for cache in (False, True):
        logits = model(batch, attention_mask=mask, use_cache=cache).logits
        for row, n in enumerate(lengths):
            alone = model(text(1, n)).logits[0]
            torch.testing.assert_close(logits[row, mask[row] == 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_long_prompt_is_read_in_chunks_and_all_of_it_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = retrofitted("gpt_neox", OPTIONS[0])
    tokens = text(1, 40 * L + 5)
    decoder, widest = model.get_decoder(), 0
    embed = model.get_input_embeddings()

    def watch(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal widest
        widest = max(widest, args[0].numel())

    embed.register_forward_pre_hook(watch)
    out = model.generate(tokens, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    assert widest == 16 * L
    _, states = run_segments(model, tokens[:, : 40 * L], L)
    for layer, state in out.past_key_values.memory.items():
        torch.testing.assert_close(state.normalizer, states[layer].normalizer)
    assert decoder.run is None


@torch.no_grad()
def test_the_state_has_one_size_and_survives_a_file(tmp_path: Path) -> None:
    for options in OPTIONS[:3]:
        model = retrofitted("qwen3", options)
        short, long = model(text(2, 2 * L)).past_key_values, model(text(2, 20 * L)).past_key_values
        assert short.nbytes == long.nbytes
        book, more = text(2, 45), text(2, 30)
        after = model(more, past_key_values=model(book).past_key_values).logits
        infini.save_memory(model(book).past_key_values, tmp_path / "book.safetensors")
        model.save_pretrained(tmp_path / "adapter")
        model = infini.load(tmp_path / "adapter", tiny("qwen3"))
        state = infini.load_memory(tmp_path / "book.safetensors")
        assert torch.equal(model(more, past_key_values=state).logits, after)
        # generate takes it for what stands before the new tokens
        state = infini.load_memory(tmp_path / "book.safetensors", model)
        going_on = model.generate(more, past_key_values=state, **GREEDY)[:, 30:]
        expected = model.generate(torch.cat([book, more], 1), **GREEDY)[:, 75:]
        assert torch.equal(going_on, expected)


def test_a_foreign_memory_is_refused(tmp_path: Path) -> None:
    model = retrofitted("llama", OPTIONS[0])
    infini.save_memory(model(text(1, 20)).past_key_values, tmp_path / "m.safetensors")
    model.get_decoder().layers[0].alpha.data += 1
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "m.safetensors", model)
    state = infini.load_memory(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="written by other memory layers"):
        model(text(1, 3), past_key_values=state)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="not a memory that infini saved"):
        infini.load_memory(tmp_path / "adapter/infini.safetensors")
    with pytest.raises(InputError, match="not a memory that infini saved"):
        infini.load_memory(tmp_path / "nowhere")
    with pytest.raises(InputError, match="save_memory needs the past_key_values"):
        infini.save_memory({}, tmp_path / "n.safetensors")


def test_wrong_calls_are_refused_in_one_line() -> None:
    model = retrofitted("llama", OPTIONS[0])
    state = model(text(2, 3)).past_key_values
    with pytest.raises(InputError, match="holds 2 samples, the batch has 1"):
        model(text(1, 3), past_key_values=state)
    with pytest.raises(InputError, match="a DynamicCache cannot hold the memory"):
        model(text(1, 3), past_key_values=DynamicCache())
    with pytest.raises(InputError, match="attention_mask: "):
        model(text(1, 3), attention_mask=torch.ones(1, 2))
    with pytest.raises(InputError, match="at least one token"):
        model(text(1, 0))
    with pytest.raises(InputError, match="output_attentions"):
        model(text(1, 3), output_attentions=True)
    with pytest.raises(InputError, match="cannot forget"):
        state.crop(-1)
    with pytest.raises(InputError, match="cache_implementation='static'"):
        model.generate(text(1, 3), cache_implementation="static", max_new_tokens=2)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_checkpointing_changes_no_gradient(name: str, options: dict[str, Any]) -> None:
    model, tokens = retrofitted(name, options), text(2, 3 * L)
    if name == "gpt2":
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    plain = model(tokens, labels=tokens, use_cache=False)
    expected = torch.autograd.grad(plain.loss, trained)
    model.gradient_checkpointing_enable()
    again = model(tokens, labels=tokens, use_cache=False)
    torch.testing.assert_close(torch.autograd.grad(again.loss, trained), expected)


def test_labels_are_those_of_the_whole_document() -> None:
    model, tokens = retrofitted("llama", OPTIONS[0]), text(2, 3 * L)
    out = model(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(out.loss, expected)


def test_a_later_segments_loss_reaches_what_an_earlier_one_wrote() -> None:
    model, tokens = retrofitted("gpt_neox", OPTIONS[0]), text(2, 3 * L)
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    tokens[:, 0] = 0  # occurs nowhere else
    model(tokens).logits[:, 2 * L :].square().sum().backward()
    assert embeddings.grad[0].abs().sum() > 0


@torch.no_grad()
def test_autocast_and_bfloat16() -> None:
    model, tokens = retrofitted("llama", OPTIONS[1]), text(2, 3 * L)
    exact = model(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        close = model(tokens).logits
    torch.testing.assert_close(close.float(), exact, rtol=0.1, atol=0.1)
    state = model.bfloat16()(tokens).past_key_values.memory[0]
    assert state.matrix.dtype == torch.float32
    assert state.keys.dtype == torch.bfloat16


@torch.no_grad()
def test_streaming_by_segments_needs_whole_segments(model: PreTrainedModel) -> None:
    tokens = text(2, 3 * L)
    infini.retrofit(model, layers=[0, 1], segment_length=L, alpha=0.7)
    whole, _ = run_segments(model, tokens, L)
    states, parts = None, []
    for chunk in tokens.split([2 * L, L], 1):
        hidden, states = run_segments(model, chunk, L, states)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    _, states = run_segments(model, tokens[:, :5], L)
    with pytest.raises(ValueError, match="must be a multiple of 16 tokens"):
        run_segments(model, tokens[:, 5:], L, states)
