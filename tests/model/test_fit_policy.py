"""Policies that are fitted to texts: the queries they are fitted to, and their tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

import infini
from architectures import WINDOWED, text, tiny
from infini.choices import RETENTION_BLOCK
from infini.errors import InputError
from infini.memory.eviction import (
    A2SF,
    HeldPairs,
    LayerSize,
    Learned,
    QueryStatistics,
    RetentionPolicy,
)
from infini.model import fit_policy
from infini.model.base import load_base
from infini.model.forward import policy_override
from infini.model.modules import (
    infini_parameters,
    retained_modules,
    trained_parameters,
    window_layers,
)
from infini.model.window.full_attention import LayerInputs, record_full_attention
from toy import sentence

OPTIONS = {"window": 7, "sinks": 3, "retained": 5}
FITTED = ("expected_attention", "learned", "learned_no_attention", "q_filter")


def retrofitted(base: str | PreTrainedModel, policy: str | RetentionPolicy) -> PreTrainedModel:
    base = tiny(base) if isinstance(base, str) else base
    return infini.retrofit(base, "window", **OPTIONS, policy=policy)


def fitted_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: x for name, x in infini_parameters(model).items() if ".policy_weights." in name}


class Recorder(RetentionPolicy):
    """A policy that records the moments that it is fitted to."""

    def __init__(self) -> None:
        self.statistics: list[QueryStatistics] = []

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        return {"mean": (size.heads, size.key_width)}

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        self.statistics.append(queries)
        return {"mean": queries.mean}

    def score(self, pairs: Any) -> Tensor:
        return pairs.values.norm(dim=-1)


def hooked_queries(base: PreTrainedModel, texts: list[Tensor]) -> list[Tensor]:
    """Queries of every layer without positions, (H, tokens, D), by hooks on its projection."""
    found: dict[nn.Module, list[Tensor]] = {}
    heads, width = base.config.num_attention_heads, base.config.hidden_size

    def keep(module: nn.Module, _: Any, out: Tensor) -> None:
        found.setdefault(module, []).append(out[0, :, :width])

    for name, module in base.named_modules():
        if name.endswith(("q_proj", "c_attn")):  # gpt2's: queries, keys and values
            module.register_forward_hook(keep)
    with torch.no_grad():
        for tokens in texts:
            base(tokens[None], use_cache=False)
    return [torch.cat(x).unflatten(1, (heads, -1)).transpose(0, 1) for x in found.values()]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_moments_are_those_of_the_bases_own_queries(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text(1, 40)[0], text(1, 31)[0]]
    policy = Recorder()
    monkeypatch.setattr(fit_policy, "MAX_TOKENS", 25)  # longer texts are read in pieces
    infini.fit_policy(retrofitted(name, policy), texts)
    pieces = [piece for tokens in texts for piece in tokens.split(25)]
    queries = hooked_queries(tiny(name), pieces)
    assert len(policy.statistics) == len(queries) == 3
    for statistics, q in zip(policy.statistics, queries, strict=True):
        scaled = q * q.shape[2] ** -0.5
        torch.testing.assert_close(statistics.mean, scaled.mean(1))
        torch.testing.assert_close(statistics.second_moment, scaled.mT @ scaled / q.shape[1])
        assert statistics.kv_heads == (2 if name == "llama" else 4)
        assert (statistics.rotate is None) == (name == "gpt2")


class ReservedName(Recorder):
    """A policy whose tensor has a name of torch's."""

    def __init__(self, name: str):
        super().__init__()
        self.tensor_name = name

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        return {self.tensor_name: (size.heads,)}


@pytest.mark.parametrize("name", ["keys", "training", "_modules", "a.b", ""])
def test_tensor_with_a_name_of_torchs_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^policy 'ReservedName': weight_shapes: '{name}' is no"):
        retrofitted("llama", ReservedName(name))


class OtherShape(Recorder):
    """A policy that fits less than it declares."""

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        return {"mean": queries.mean[:1]}


def test_fitted_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^policy 'OtherShape': fit must return finite numbers of"
    ):
        infini.fit_policy(retrofitted("llama", OtherShape()), [text(1, 40)[0]])


def test_mapping_of_texts_is_fitted_to_its_texts() -> None:
    texts = {"a.txt": text(1, 90)[0], "b.txt": text(1, 80)[0]}
    of_mapping = fitted_tensors(infini.fit_policy(retrofitted("llama", "learned"), texts))
    of_list = fitted_tensors(infini.fit_policy(retrofitted("llama", "learned"), [*texts.values()]))
    assert all(torch.equal(x, of_list[name]) for name, x in of_mapping.items())


def test_learned_policy_reads_where_a_layers_own_window_is_smaller() -> None:
    model = retrofitted("mistral_5", "learned")  # no pair behind the window is ever attended to
    infini.fit_policy(model, [text(1, 90)[0]])
    base = tiny("mistral_5")(text(1, 90)).logits
    torch.testing.assert_close(model(text(1, 90)).logits, base, rtol=1e-4, atol=1e-5)


class Spy(A2SF):
    """A2SF; records all that it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[HeldPairs, Tensor]] = []

    def score(self, pairs: HeldPairs) -> Tensor:
        scores = super().score(pairs)
        assert pairs.keys is pairs.keys  # gathered now, and kept
        assert pairs.relative_keys is pairs.relative_keys
        assert pairs.values is pairs.values
        self.seen.append((pairs, pairs.state["score"]))
        return scores


def attention_to_come(attentions: Tensor, kv_heads: int, pair: tuple[int, int], end: int) -> float:
    """Squared attention that later blocks pay to a token, mean over heads, discounted by block.

    attentions: (H, T, T) of a layer; pair: key-value head and token; end: start of the next block.
    """
    (g, token), r = pair, len(attentions) // kv_heads
    received = attentions[g * r : (g + 1) * r, end:, token].square().mean(0)
    return sum(0.9**i * float(x.sum()) for i, x in enumerate(received.split(RETENTION_BLOCK)))


@pytest.mark.parametrize("use_attention", [True, False])
def test_learned_is_ridge_regression_to_the_attention_to_come(use_attention: bool) -> None:
    texts = [text(1, 150)[0], text(1, 131)[0]]
    base = tiny("llama")
    base.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = [base(x[None], output_attentions=True).attentions for x in texts]
    model = retrofitted(base, Learned(use_attention))
    infini.fit_policy(model, texts)
    names = ["key", "value", "scalar", *["relative_key"] * (not use_attention)]
    fitted = {
        i: torch.cat([own.policy_weights[name] for name in names], 1)
        for i, own in retained_modules(model).items()
    }
    rows: dict[tuple[int, int], list[tuple[Tensor, float]]] = {}
    for tokens, weights in zip(texts, attentions, strict=True):
        spy = Spy()
        with policy_override(model, spy), torch.no_grad():
            model(tokens[None])
        for pairs, scores in spy.seen:
            for g in range(2):
                for i in range(pairs.num_candidates):
                    if not pairs.valid[0, g, i]:
                        continue
                    token = int(pairs.positions[0, g, i])
                    age = torch.tensor(float(pairs.block_end - token)).log()
                    log_score = scores[0, g, i].clamp(min=1e-4).log()
                    last = torch.stack([log_score, log_score * age])
                    if not use_attention:
                        last = pairs.relative_keys[0, g, i]
                    features = torch.cat([
                        pairs.keys[0, g, i], pairs.values[0, g, i],
                        torch.stack([torch.tensor(1.0), age]), last,
                    ])  # fmt: skip
                    layer, end = pairs.layer_index, pairs.block_end
                    target = attention_to_come(weights[layer][0], 2, (g, token), end)
                    rows.setdefault((layer, g), []).append((features.double(), target**0.5))
    assert len(rows) == 3 * 2
    for (layer, g), samples in rows.items():
        x = torch.stack([features for features, _ in samples])
        y = torch.tensor([target for _, target in samples], dtype=torch.float64)
        penalty = (1e-3 * x.square().sum(0) + 1e-6).sqrt().diag()  # ridge as further samples
        augmented = torch.cat([x, penalty]), torch.cat([y, torch.zeros(len(penalty)).double()])
        expected = torch.linalg.lstsq(augmented[0], augmented[1][:, None]).solution[:, 0]
        torch.testing.assert_close(fitted[layer][g].double(), expected, rtol=1e-3, atol=1e-4)


def test_texts_too_short_for_a_learned_policy_are_refused() -> None:
    model = retrofitted("llama", "learned")
    with pytest.raises(InputError, match="texts must be longer than window, sinks and a block"):
        infini.fit_policy(model, [text(1, 30)[0]])
    assert isinstance(retained_modules(model)[0].policy, Learned)


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_record_full_attention_equals_base(name: str) -> None:
    base, tokens, recorded = tiny(name), text(2, 40), list[LayerInputs]()
    expected = base.get_decoder()(tokens, use_cache=False).last_hidden_state
    model = retrofitted(base, "decayed_attention")
    outputs = list[Any]()
    model.get_decoder().register_forward_hook(lambda _, __, out: outputs.append(out))
    record_full_attention(model, tokens, recorded.append)
    torch.testing.assert_close(outputs[0].last_hidden_state, expected, rtol=1e-3, atol=1e-4)
    assert [inputs.layer_index for inputs in recorded] == list(range(len(recorded)))
    assert len(recorded) == base.config.num_hidden_layers
    for inputs in recorded:
        assert inputs.q.shape[2] == inputs.k.shape[2] == 40


@pytest.mark.parametrize("policy", FITTED)
def test_fitted_tensors_are_saved_and_not_trained(policy: str, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    model, tokens = retrofitted(load_base(str(tmp_path / "base")), policy), text(2, 90)
    before = model.get_decoder().fingerprint()
    assert infini.fit_policy(model, list(text(3, 60))) is model
    fitted = fitted_tensors(model)
    assert len(fitted) == 3 * len(window_layers(model)[0].retained.policy_weights)
    assert all(tensor.any() and not tensor.requires_grad for tensor in fitted.values())
    assert not fitted.keys() & trained_parameters(model).keys()
    assert model.get_decoder().fingerprint() != before
    expected = model(tokens).logits
    expected.sum().backward()
    assert all(tensor.grad is None for tensor in fitted.values())
    model.save_pretrained(tmp_path / "ours")
    again = infini.load(tmp_path / "ours")
    assert torch.equal(again(tokens).logits, expected)
    assert not any(tensor.requires_grad for tensor in fitted_tensors(again).values())
    assert again.get_decoder().fingerprint() == model.get_decoder().fingerprint()


@pytest.mark.parametrize("policy", FITTED)
@torch.no_grad()
def test_policy_that_is_not_fitted_is_refused_in_one_line(policy: str) -> None:
    model = retrofitted("llama", policy)
    with pytest.raises(InputError) as error:
        model(text(1, 90))
    expected = f"policy '{policy}' must be fitted to texts first: infini.fit_policy(model, texts)"
    assert str(error.value) == expected


@torch.no_grad()
def test_texts_as_strings_equal_texts_as_tokens(base_folder: Path) -> None:
    words = [sentence(50, 1), sentence(90, 2)]
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokens = [torch.tensor(tokenizer(text).input_ids) for text in words]
    given: list[dict[str, Any]] = [
        {"texts": words},
        {"texts": words, "tokenizer": tokenizer},
        {"texts": tokens},
    ]
    results = [
        fitted_tensors(
            infini.fit_policy(retrofitted(load_base(str(base_folder)), "q_filter"), **some)
        )
        for some in given
    ]
    for result in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(result[name], tensor)


def fitted_vectors(model: PreTrainedModel) -> list[Tensor]:
    """Each fitted tensor as a vector; those of a learned policy, one regression, a layer as one."""
    vectors = []
    for retained in retained_modules(model).values():
        tensors = [x.flatten().float() for x in retained.policy_weights.values()]
        vectors += [torch.cat(tensors)] if isinstance(retained.policy, Learned) else tensors
    return vectors


@pytest.mark.parametrize("policy", FITTED)
@torch.no_grad()
def test_half_precision_base(policy: str) -> None:
    texts = list(text(4, 60))
    expected = fitted_vectors(infini.fit_policy(retrofitted("llama", policy), texts))
    model = infini.fit_policy(retrofitted(tiny("llama").bfloat16(), policy), texts)
    for exact, close in zip(expected, fitted_vectors(model), strict=True):
        assert torch.cosine_similarity(exact, close, 0) > 0.999
    assert model(text(2, 90)).logits.isfinite().all()


def test_what_cannot_be_fitted() -> None:
    model = retrofitted("llama", "q_filter")
    for texts in ([], "a text"):
        with pytest.raises(InputError, match=r"texts must be a list of ≥ 1 text"):
            infini.fit_policy(model, texts)
    for texts in ([torch.zeros(2, 2)], [torch.zeros(0)]):
        with pytest.raises(InputError, match=r"text 1: must be a text, or its tokens, \(T,\)"):
            infini.fit_policy(model, texts)
    with pytest.raises(InputError, match=r"text 1: tokens must be integers, got torch.float32"):
        infini.fit_policy(model, [torch.randn(9)])
    with pytest.raises(InputError, match=r"input_ids must be between 0 and \d+, got 5000"):
        infini.fit_policy(model, [torch.tensor([1, 5000])])
    assert not any(tensor.any() for tensor in fitted_tensors(model).values())
    without = infini.retrofit(tiny("llama"), "window", window=7)
    with pytest.raises(InputError, match="fit_policy needs a model with retained pairs"):
        infini.fit_policy(without, [text(1, 9)[0]])
    with pytest.raises(InputError, match=r"policy 'h2o' has nothing to fit; these have: .*learned"):
        infini.fit_policy(retrofitted("llama", "h2o"), [text(1, 9)[0]])
