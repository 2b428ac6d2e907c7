"""peft around a retrofitted model: LoRA beside the memory, several copies of it, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import infini
from architectures import L, text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.modules import infini_parameters

W, S = 8, 2
METHODS: dict[str, dict[str, Any]] = {
    "window": {"method": "window", "window": W, "sinks": S, "retained": 4},
    "parallel": {"method": "parallel", "layers": [0, 2], "segment_length": L, "alpha": 0.5},
    "replace": {"method": "replace", "layers": [1], "segment_length": L},
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Return the folder of a base."""
    tiny("llama").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def retrofitted(base: str, method: str) -> PreTrainedModel:
    return infini.retrofit(AutoModelForCausalLM.from_pretrained(base), **METHODS[method])


def lora(method: str, **options: Any) -> LoraConfig:
    """Return a LoRA of the base's layers that also trains the memory."""
    own = "infini_window" if method == "window" else "infini_layer"
    defaults = {"target_modules": "all-linear", "modules_to_save": [own], "r": 2}
    return LoraConfig(task_type="CAUSAL_LM", **(defaults | options))


def change_memory(model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Draw the memory's parameters anew; return copies of them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return {name: p.detach().clone() for name, p in infini_parameters(model).items()}


@torch.no_grad()
def read(model: Any, tokens: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """Read W + S tokens exactly, then the rest; return all logits and the cache."""
    parts = []
    for piece in tokens.split([W + S, tokens.shape[1] - W - S], 1):
        out = model(input_ids=piece, use_cache=True, **{CACHE: cache})
        cache = cache_of(out)
        parts.append(out.logits)
    return torch.cat(parts, 1), cache


@pytest.mark.parametrize("method", METHODS)
def test_memory_of_the_active_adapter_is_used(method: str, base: str, tmp_path: Path) -> None:
    model, plain, book, more = retrofitted(base, method), {}, text(2, 40), text(2, 23)
    untrained = {name: p.detach().clone() for name, p in infini_parameters(model).items()}
    config = lora(method)  # untrained: the base is itself
    tuned = get_peft_model(model, config, "first").eval()
    tuned.add_adapter("second", config)
    for seed, name in enumerate(("first", "second")):
        tuned.set_adapter(name)
        values = change_memory(model, seed)
        plain[name] = retrofitted(base, method)
        for own, parameter in infini_parameters(plain[name]).items():
            parameter.data.copy_(values[own])
    for name, other in (("first", "second"), ("second", "first")):
        tuned.set_adapter(name)
        expected, memory = read(plain[name], book)
        logits, own_memory = read(tuned, book)
        torch.testing.assert_close(logits, expected)
        assert not torch.allclose(logits, read(plain[other], book)[0], atol=1e-3)
        infini.save_memory(own_memory, tmp_path / name)
        expected, _ = read(plain[name], more, memory)
        loaded = infini.load_memory(tmp_path / name, model)
        torch.testing.assert_close(read(tuned, more, loaded)[0], expected)
        tuned.set_adapter(other)
        with pytest.raises(InputError, match="written by other memory layers"):
            infini.load_memory(tmp_path / name, model)
    tuned.set_adapter("second")
    with tuned.disable_adapter():  # the memory as it was before peft
        for own, parameter in infini_parameters(model).items():
            assert torch.equal(parameter, untrained[own])
    tuned.merge_and_unload().save_pretrained(tmp_path / "saved")
    saved = infini_parameters(infini.load(tmp_path / "saved"))
    for own, parameter in infini_parameters(plain["second"]).items():
        assert torch.equal(saved[own], parameter)


@pytest.mark.parametrize("method", METHODS)
def test_memory_and_lora_are_trained_and_saved_together(
    method: str, base: str, tmp_path: Path
) -> None:
    model, tokens = retrofitted(base, method), text(2, 40)
    model.save_pretrained(tmp_path / "memory")
    tuned = get_peft_model(model, lora(method))
    own = {id(parameter) for parameter in infini_parameters(model).values()}
    trained = {id(parameter) for parameter in tuned.parameters() if parameter.requires_grad}
    assert own < trained
    before = change_memory(model, 0)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the second step moves what is behind LoRA's zeros
        optimizer.zero_grad()
        tuned(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = infini_parameters(model)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    tuned.save_pretrained(tmp_path / "tuned")
    again = PeftModel.from_pretrained(infini.load(tmp_path / "memory"), tmp_path / "tuned")
    expected, _ = read(tuned.eval(), tokens)
    assert torch.equal(read(again.eval(), tokens)[0], expected)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    generated = tuned.generate(input_ids=tokens, **greedy)
    assert torch.equal(again.generate(input_ids=tokens, **greedy), generated)

    merged = tuned.merge_and_unload()
    torch.testing.assert_close(read(merged, tokens)[0], expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged", save_base=tmp_path / "merged-base")
    loaded = infini.load(tmp_path / "merged")
    torch.testing.assert_close(read(loaded, tokens)[0], expected, rtol=1e-4, atol=1e-4)


def test_base_with_merged_lora_is_retrofitted(base: str, tmp_path: Path) -> None:
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), lora("window", modules_to_save=None)
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    short = text(2, W + S)
    with torch.no_grad():
        expected = tuned.eval()(input_ids=short).logits
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    model = retrofitted(str(tmp_path / "merged"), "window")
    model.save_pretrained(tmp_path / "memory")
    with torch.no_grad():
        logits = infini.load(tmp_path / "memory")(short).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_unmerged_adapters_are_refused_in_one_line(base: str, tmp_path: Path) -> None:
    config = lora("window", modules_to_save=None)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for model in (tuned, tuned.get_base_model()):
        with pytest.raises(InputError, match=r"has adapters of peft: merge them.*put peft around"):
            infini.retrofit(model, **METHODS["window"])
    model = retrofitted(base, "window")
    tuned = get_peft_model(model, config)
    for found in (tuned, model):
        with pytest.raises(InputError, match=r"has adapters of peft: unload them first"):
            infini.remove(found)
    with pytest.raises(InputError, match=r"no part of a saved memory: save them by save_pretrain"):
        model.save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    infini.remove(tuned.unload())


def test_memory_read_with_lora_is_not_loaded_without_it(base: str, tmp_path: Path) -> None:
    model, tokens = retrofitted(base, "window"), text(2, 40)
    tuned = get_peft_model(model, lora("window", modules_to_save=None)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    _, memory = read(tuned, tokens)
    infini.save_memory(memory, tmp_path / "book")
    loaded = infini.load_memory(tmp_path / "book", model)
    assert torch.equal(read(tuned, tokens, loaded)[0], read(tuned, tokens, memory)[0])
    with tuned.disable_adapter(), pytest.raises(InputError, match="written by other memory layer"):
        infini.load_memory(tmp_path / "book", model)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_memory_read_with_two_adapters_is_not_saved(method: str, base: str, tmp_path: Path) -> None:
    config, tokens = lora(method, modules_to_save=None), text(2, 40)
    tuned = get_peft_model(retrofitted(base, method), config).eval()
    tuned.add_adapter("two", config)
    for name, parameter in tuned.named_parameters():
        if "lora_B.two" in name:
            parameter.normal_()
    _, memory = read(tuned, tokens)
    _, memory = read(tuned, tokens, memory)
    infini.save_memory(memory, tmp_path / "book")
    tuned.set_adapter("two")
    _, memory = read(tuned, tokens, memory)
    with pytest.raises(InputError, match="the weights or the active adapter changed while"):
        infini.save_memory(memory, tmp_path / "book")
    tuned.set_adapter("default")
    _, memory = read(tuned, tokens, infini.load_memory(tmp_path / "book", tuned))
    with tuned.disable_adapter():
        _, memory = read(tuned, tokens, memory)
    with pytest.raises(InputError, match="the weights or the active adapter changed while"):
        infini.save_memory(memory, tmp_path / "book")


@pytest.mark.parametrize("method", METHODS)
def test_memory_read_with_a_copied_embedding_is_not_loaded_without_it(
    method: str, base: str, tmp_path: Path
) -> None:
    model, tokens = retrofitted(base, method), text(2, 40)
    known = model.get_decoder().known_base
    plain = known.fingerprint()
    own = lora(method).modules_to_save
    tuned = get_peft_model(model, lora(method, modules_to_save=[*own, "embed_tokens"])).eval()
    _, memory = read(tuned, tokens)
    infini.save_memory(memory, tmp_path / "book")
    infini.load_memory(tmp_path / "book", model)
    model.get_input_embeddings().weight.data += 0.1  # the active copy
    with pytest.raises(InputError, match="written by other memory layer"):
        infini.load_memory(tmp_path / "book", model)
    assert known.fingerprint() == plain  # the base itself is what it was
    tuned.double()
    assert known.fingerprint() == plain
    model.get_decoder().embed_tokens.original_module.weight.data += 0.1
    assert known.fingerprint() is None
