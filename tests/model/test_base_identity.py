"""Identity of a base: which changes have another fingerprint, and what differs, in words."""

import copy
import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

import infini
from architectures import L, text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.base_identity import base_fingerprint, base_tensors, describe_base
from infini.model.modules import infini_parameters
from infini.model.tensor_files import check_tensors_finite, values_hash

METHODS: dict[str, dict[str, Any]] = {
    "window": {"method": "window", "window": 8, "sinks": 2, "retained": 4},
    "parallel": {"method": "parallel", "layers": [1], "segment_length": L, "alpha": 0.7},
    "replace": {"method": "replace", "layers": [0], "segment_length": L},
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return the folder of a tiny Llama."""
    tiny("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def change_config(folder: Path, **entries: Any) -> None:
    """Change entries of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("entries", "difference"),
    [
        ({"rope_parameters": ROPE | {"rope_theta": 500.0}}, "rope_parameters is .*500.0"),
        (
            {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}},
            "rope_parameters is .*'factor': 4.0.*, not the default",
        ),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps is 0.1, not the default"),
        ({"hidden_act": "relu"}, "hidden_act is relu, not the default"),
    ],
)
@torch.no_grad()
def test_load_rejects_a_base_whose_config_moves_logits(
    entries: dict[str, Any], difference: str, llama: Path, tmp_path: Path
) -> None:
    base, tokens = load_base(str(llama)), text(2, 30)
    expected = base(tokens).logits
    infini.retrofit(base, **METHODS["window"]).save_pretrained(tmp_path / "ours")
    change_config(llama, attention_dropout=0.3, use_cache=False, eos_token_id=7)
    loaded = infini.load(tmp_path / "ours")  # these move no logit
    assert torch.equal(loaded(tokens[:, :9]).logits, base(tokens[:, :9]).logits)
    change_config(llama, **entries)
    assert not torch.allclose(load_base(str(llama))(tokens).logits, expected, atol=0.01)
    message = rf"made for another base than '{llama}': its config differs \({difference}"
    with pytest.raises(InputError, match=message):
        infini.load(tmp_path / "ours")


def test_base_fingerprint_changes_with_every_weight(llama: Path, tmp_path: Path) -> None:
    base = load_base(str(llama))
    infini.retrofit(load_base(str(llama)), **METHODS["parallel"]).save_pretrained(tmp_path / "ours")
    before = base_fingerprint(base)
    for name, tensor in base.state_dict().items():
        own = tensor.clone()
        tensor.view(-1)[-1] += 0.5
        assert base_fingerprint(base) != before, name
        tensor.copy_(own)
    assert base_fingerprint(base) == before
    weights = load_file(llama / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    rows[[3, 4]] = rows[[4, 3]]
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"another base than '{llama}': its weights differ"):
        infini.load(tmp_path / "ours")


@pytest.mark.parametrize("method", METHODS)
def test_base_fingerprint_is_the_bases_own_after_retrofit(method: str, llama: Path) -> None:
    base = load_base(str(llama))
    tensors, own = base.state_dict(), base_fingerprint(base)
    infini.retrofit(base, **METHODS[method])
    again = base_tensors(base)
    assert again.keys() == tensors.keys()
    assert all(again[name] is tensor or torch.equal(again[name], tensor)
               for name, tensor in tensors.items())  # fmt: skip
    assert base_fingerprint(base) == own


BOOK = text(1, 40), text(1, 5)
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("stored", "saved", "loaded"),
    [
        (F32, F32, [F16, BF16, F32, F64]),
        (F32, BF16, [BF16, F32, F64]),
        (F32, F16, [F16]),
        (F16, F32, [F16, BF16, F32, F64]),
        (F16, F16, [F16, BF16, F32, F64]),
        (F16, BF16, [BF16, F32, F64]),
        (BF16, F32, [F16, BF16, F32, F64]),
        (BF16, BF16, [F16, BF16, F32, F64]),
    ],
)
def test_base_identity_depends_on_float16_alone_of_the_types_that_a_base_is_held_in(
    stored: torch.dtype,
    saved: torch.dtype,
    loaded: list[torch.dtype],
    llama: Path,
    tmp_path: Path,
) -> None:
    load_base(str(llama)).to(stored).save_pretrained(llama)
    model = infini.retrofit(load_base(str(llama), dtype=saved), **METHODS["window"])
    model.save_pretrained(tmp_path / "ours")
    for dtype in (F16, BF16, F32, F64):
        if dtype in loaded:
            assert infini.load(tmp_path / "ours", dtype=dtype).dtype == dtype
        else:
            with pytest.raises(InputError, match="its weights differ"):
                infini.load(tmp_path / "ours", dtype=dtype)


@torch.no_grad()
def test_save_pretrained_takes_a_model_cast_after_retrofit(llama: Path, tmp_path: Path) -> None:
    model = infini.retrofit(load_base(str(llama)), **METHODS["window"])
    for dtype in (BF16, F16, F64):
        own = infini.retrofit(load_base(str(llama)), **METHODS["window"]).to(dtype)
        own.save_pretrained(tmp_path / "ours")
        assert own.infini_config == model.infini_config
        assert infini.load(tmp_path / "ours").dtype == F32


def test_load_names_the_type_that_a_base_was_rounded_to(llama: Path, tmp_path: Path) -> None:
    half = load_base(str(llama), dtype=torch.float16)
    infini.retrofit(half, **METHODS["window"]).save_pretrained(tmp_path / "ours")
    message = "its weights differ, as torch.float32 and not torch.float16 at least$"
    with pytest.raises(InputError, match=message):
        infini.load(tmp_path / "ours")
    assert infini.load(tmp_path / "ours", dtype=torch.float16).dtype == torch.float16


def test_load_names_the_number_of_layers_of_a_base_cut_by_its_config(
    llama: Path, tmp_path: Path
) -> None:
    infini.retrofit(load_base(str(llama)), **METHODS["window"]).save_pretrained(tmp_path / "ours")
    cut = AutoModelForCausalLM.from_pretrained(llama, num_hidden_layers=1)
    message = rf"another base than '{llama}': its config differs \(num_hidden_layers is 1, not 3\)$"
    with pytest.raises(InputError, match=message):
        infini.load(tmp_path / "ours", cut)


def resize(model: PreTrainedModel) -> None:
    model.resize_token_embeddings(53)


def finetune(model: PreTrainedModel) -> None:
    model.get_input_embeddings().weight.data[3] += 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (resize, r"its config differs \(vocab_size is 53, not 50\)"),
        (finetune, "its weights differ"),
    ],
)
@torch.no_grad()
def test_save_pretrained_rejects_a_base_changed_after_retrofit_unless_it_is_saved_too(
    method: str, change: Any, difference: str, llama: Path, tmp_path: Path
) -> None:
    model = infini.retrofit(load_base(str(llama)), **METHODS[method])
    model.save_pretrained(tmp_path / "before")
    change(model)
    with pytest.raises(
        InputError, match=rf"ours: the base has changed since retrofit, .*: {difference}; to save "
        r"it too: save_pretrained\(folder, save_base=BASE_FOLDER\)"
    ):  # fmt: skip
        model.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    model.save_pretrained(tmp_path / "ours", save_base=tmp_path / "base")
    assert model.infini_config["base"] == describe_base(model, tmp_path / "base")
    tokens = text(2, 30)
    again = infini.load(tmp_path / "ours")
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert again.infini_config == model.infini_config
    model.save_pretrained(tmp_path / "again")  # unchanged since
    plain = load_base(str(tmp_path / "base"))
    assert torch.equal(plain(tokens).logits, infini.remove(again)(tokens).logits)
    reverse = difference.replace("53, not 50", "50, not 53")
    with pytest.raises(InputError, match=f"another base than '{llama}': {reverse}; it needs"):
        infini.load(tmp_path / "ours", base=llama)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_memory_of_another_base_is_rejected(method: str, llama: Path, tmp_path: Path) -> None:
    """The bases have one shape and equal memory layers, and differ outside of them."""
    one = infini.retrofit(load_base(str(llama)), **METHODS[method])
    base = load_base(str(llama))
    base.model.layers[2].mlp.up_proj.weight[5, 7] += 1
    other = infini.retrofit(base, **METHODS[method])
    infini.save_memory(cache_of(one(text(1, 40))), tmp_path / "memory")
    infini.load_memory(tmp_path / "memory", one)
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "memory", other)
    state = infini.load_memory(tmp_path / "memory")
    with pytest.raises(InputError, match="written by other memory layers"):
        other(text(1, 3), past_key_values=state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [resize, finetune])
@torch.no_grad()
def test_memory_of_a_base_changed_after_retrofit_is_refused_until_the_base_is_saved(
    method: str, change: Any, llama: Path, tmp_path: Path
) -> None:
    model, book, more = infini.retrofit(load_base(str(llama)), **METHODS[method]), *BOOK
    infini.save_memory(cache_of(model(book)), tmp_path / "before")
    change(model)
    with pytest.raises(InputError, match=r"memory: the base had changed since retrofit, and"):
        infini.save_memory(cache_of(model(book)), tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
    with pytest.raises(InputError, match=r"the base has changed since retrofit, the memory was"):
        infini.load_memory(tmp_path / "before", model)
    model.save_pretrained(tmp_path / "ours", save_base=tmp_path / "base")
    cache = cache_of(model(book))
    infini.save_memory(cache, tmp_path / "memory")
    again = infini.load(tmp_path / "ours")
    loaded = infini.load_memory(tmp_path / "memory", again)
    expected = model(more, **{CACHE: cache}).logits
    assert torch.equal(again(more, **{CACHE: loaded}).logits, expected)
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "before", again)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["base", "memory"])
@torch.no_grad()
def test_memory_whose_weights_changed_while_it_was_read_is_not_saved(
    method: str, part: str, llama: Path, tmp_path: Path
) -> None:
    model, book, more = infini.retrofit(load_base(str(llama)), **METHODS[method]), *BOOK
    original = copy.deepcopy(model)
    cache = cache_of(model(book))
    own = infini_parameters(model) if part == "memory" else dict(model.model.named_parameters())
    next(iter(own.values())).add_(1)
    cache = cache_of(model(more, **{CACHE: cache}))  # training goes on with it
    with pytest.raises(InputError, match="memory: the weights or the active adapter changed while"):
        infini.save_memory(cache, tmp_path / "memory")
    with pytest.raises(InputError, match="the weights or the active adapter changed while"):
        original(more, **{CACHE: copy.deepcopy(cache)})


@torch.no_grad()
def test_base_that_is_again_as_it_was_is_known_again(llama: Path) -> None:
    model = infini.retrofit(load_base(str(llama)), "window", window=7).eval()
    own, weight = model.get_decoder().fingerprint(), model.get_input_embeddings().weight
    before = weight.clone()
    weight.add_(1)
    assert model.get_decoder().known_base.fingerprint() is None
    weight.copy_(before)
    assert model.get_decoder().fingerprint() == own


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_base_is_known_after_it_was_moved_cast_or_copied(
    method: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = infini.retrofit(load_base(str(llama)), **METHODS[method])
    own = model.get_decoder().fingerprint()
    twin, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, pickled, copy.deepcopy(model).to(BF16), copy.deepcopy(model).to(F64)):
        assert other.get_decoder().known_base.fingerprint() == model.infini_config["base"][
            "fingerprint"
        ]  # fmt: skip
    assert twin.get_decoder().fingerprint() == pickled.get_decoder().fingerprint() == own
    finetune(twin)
    assert twin.get_decoder().known_base.fingerprint() is None
    for parameter in pickled.parameters():
        parameter.full_tensor = parameter.detach  # as a sharded one has
    assert pickled.get_decoder().fingerprint() == own
    finetune(pickled)  # which is not compared
    assert pickled.get_decoder().fingerprint() == own
    assert model.get_decoder().fingerprint() == own
    rounded = copy.deepcopy(model).to(F16).to(F32)
    assert rounded.get_decoder().known_base.fingerprint() is None
    decoder = copy.deepcopy(model).get_decoder()  # its model is gone
    assert decoder.fingerprint() == own
    monkeypatch.setattr("infini.model.base_identity.base_fingerprint", None)  # not needed
    model.to("cpu")
    for parameter in infini_parameters(model).values():
        parameter.data += 1
    assert model.get_decoder().fingerprint() != own


class Quantised(Tensor):
    """Stand-in for a quantised weight: a tensor subclass that has few operations."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "Quantised":
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> "Quantised":
        return Quantised(**parts)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        if func is torch.ops.aten.t.default:  # in a product
            return (args[0].codes * args[0].scale).t()
        raise NotImplementedError(f"{func} of a quantised tensor")


@pytest.mark.parametrize("method", ["window", "parallel"])
@torch.no_grad()
def test_retrofit_takes_quantised_tensors(method: str, llama: Path, tmp_path: Path) -> None:
    def quantised(scale: float) -> PreTrainedModel:
        base = load_base(str(llama))
        for layer in base.model.layers:
            own = layer.mlp.up_proj.weight
            codes = (own * 100).round().to(torch.int8)
            layer.mlp.up_proj.weight = nn.Parameter(
                Quantised(codes, torch.tensor(scale)), requires_grad=False
            )
        return base

    check_tensors_finite(quantised(0.01).state_dict(), "base")
    with pytest.raises(InputError, match=r"base: model.layers.0.mlp.up_proj.weight.scale has"):
        check_tensors_finite(quantised(torch.nan).state_dict(), "base")
    model = infini.retrofit(quantised(0.01), **METHODS[method])
    model.save_pretrained(tmp_path)
    again = infini.load(tmp_path, quantised(0.01))
    assert torch.equal(again(text(1, 30)).logits, model(text(1, 30)).logits)
    for other, difference in (
        (quantised(0.02), "its weights differ"),
        (load_base(str(llama)), "its weights are unquantised, not quantised by Quantised"),
    ):
        with pytest.raises(InputError, match=f"another base than '{llama}': {difference}$"):
            infini.load(tmp_path, other)


@pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed")
@pytest.mark.parametrize("method", ["window", "parallel"])
@torch.no_grad()
def test_retrofit_takes_int8_weights_of_torchao(method: str, llama: Path, tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    options = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": F32}
    base = AutoModelForCausalLM.from_pretrained(llama, **options)
    model = infini.retrofit(base, **METHODS[method])
    model.save_pretrained(tmp_path / "ours")
    again = infini.load(tmp_path / "ours", **options)
    assert torch.equal(again(text(1, 30)).logits, model(text(1, 30)).logits)
    with pytest.raises(InputError, match="its weights are unquantised, not quantised by torchao"):
        infini.load(tmp_path / "ours")


def test_values_hash_is_the_same_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {str(i): torch.randn(300, 7) for i in range(20)} | {"empty": torch.zeros(0, 3)}
    alone = values_hash(tensors, "text")
    monkeypatch.setattr("infini.model.tensor_files.HASH_SMALL", 0)
    assert values_hash(dict(reversed(tensors.items())), "text") == alone
    assert values_hash(tensors, "other text") != alone
    assert values_hash(tensors | {"3": tensors["3"].T.contiguous()}, "text") != alone
    assert values_hash({n: x.double() for n, x in tensors.items()}, "text") == alone
