"""A retention policy of the user's own, through `retrofit`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.memory.eviction import AdaKV, HeldPairs, block_layout, selection
from infini.memory.eviction import policy as policy_module
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.modules import window_layers

OPTIONS = {"window": 7, "sinks": 3, "retained": 5}


class SmallestKeyNorm(infini.RetentionPolicy):
    """Retain the pairs with the smallest keys, which attract attention (arXiv 2406.11430).

    In the first layer, equal tokens have equal keys: the earlier stays.
    """

    def score(self, pairs: HeldPairs) -> Tensor:
        return -pairs.keys.norm(dim=-1) * (1 + 1e-3 * pairs.positions)


@torch.no_grad()
def test_user_policy_in_chunks_equals_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)
    tokens = text(2, 90)
    default = infini.retrofit(tiny("llama"), "window", **OPTIONS)(tokens).logits

    def fail(*_: object) -> None:
        raise AssertionError("attention weights are computed")

    monkeypatch.setattr(selection, "AttentionWeights", fail)
    model = infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=SmallestKeyNorm())
    whole = model(tokens, use_cache=False).logits
    assert not torch.allclose(default, whole)
    for chunks in ([40, 50], [5, 1, 1, 3, 1, 70, 9], [1] * 90):
        cache, logits = None, []
        for chunk in tokens.split(chunks, 1):
            out = model(chunk, **{CACHE: cache}, use_cache=True)
            cache = cache_of(out)
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-4, atol=1e-5)
    retained = cache.states[0].retained
    assert retained.positions.ge(OPTIONS["sinks"]).all()
    assert retained.policy_state.nbytes == retained.block_attention.nbytes == 0


@torch.no_grad()
def test_adakv_shares_the_pairs_of_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)
    tiny("llama").save_pretrained(tmp_path / "base")
    base, tokens = load_base(str(tmp_path / "base")), text(2, 90)
    model = infini.retrofit(base, "window", **OPTIONS, policy="adakv")
    whole = model(tokens, use_cache=False).logits
    for chunks in ([40, 50], [5, 1, 1, 3, 1, 70, 9]):
        cache, logits = None, []
        for chunk in tokens.split(chunks, 1):
            out = model(chunk, **{CACHE: cache}, use_cache=True)
            cache = cache_of(out)
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-4, atol=1e-5)
    retained = cache.states[0].retained
    G, K = 2, OPTIONS["retained"]
    assert retained.keys.shape[1:3] == retained.positions.shape[1:] == (G, K)
    assert retained.counts.sum(1).eq(G * K).all()
    model.save_pretrained(tmp_path / "ours")
    infini.save_memory(cache, tmp_path / "memory.safetensors")
    again = infini.load(tmp_path / "ours")
    loaded = infini.load_memory(tmp_path / "memory.safetensors", again)
    expected = model(tokens[:, :20], **{CACHE: cache}).logits
    assert torch.equal(again(tokens[:, :20], **{CACHE: loaded}).logits, expected)


def test_policy_within_a_policy_decides_whether_it_can_be_saved(tmp_path: Path) -> None:
    model = infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=AdaKV("h2o"))
    with pytest.raises(InputError, match="policy AdaKV: `load` could not make this object"):
        model.save_pretrained(tmp_path)
    for layer in window_layers(model).values():
        layer.retained.policy = AdaKV("snapkv")
    model.save_pretrained(tmp_path)


class Weighted(infini.RetentionPolicy):
    """Policy with a parameter that is no number."""

    def __init__(self, weights: tuple[float, ...] = (1.0,)):
        self.weights = weights

    def score(self, pairs: HeldPairs) -> Tensor:
        return self.weights[0] * pairs.keys.norm(dim=-1)


def test_policy_whose_parameters_load_would_not_know_is_not_saved(tmp_path: Path) -> None:
    infini.register_policy("weighted_of_this_test", Weighted)
    model = infini.retrofit(tiny("llama"), "window", window=7, retained=3, policy=Weighted((-1.0,)))
    with pytest.raises(InputError, match="policy Weighted: `load` could not make this object"):
        model.save_pretrained(tmp_path)
    infini.remove(model)
    infini.retrofit(model, "window", window=7, retained=3, policy=Weighted())
    model.save_pretrained(tmp_path)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after the test what it registers."""
    monkeypatch.setattr(policy_module, "_FACTORIES", dict(policy_module._FACTORIES))


class NaNScores(infini.RetentionPolicy):
    """Policy that scores every fifth pair NaN."""

    def score(self, pairs: HeldPairs) -> Tensor:
        scores = pairs.positions.float()
        return scores.where(pairs.positions % 5 > 0, torch.nan)


class ComplexScores(infini.RetentionPolicy):
    """Policy whose scores are no real numbers."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return pairs.positions * 1j


class NarrowState(infini.RetentionPolicy):
    """Policy that keeps a float for some of the pairs."""

    state = ("mean",)

    def score(self, pairs: HeldPairs) -> Tensor:
        pairs.state["mean"] = pairs.state["mean"][..., :1]
        return pairs.positions.float()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NaNScores(), "'NaNScores': score must return numbers, got NaN for a pair"),
        (ComplexScores(), "'ComplexScores': score must return real numbers"),
        (NarrowState(), "'NarrowState': state 'mean' must be a tensor"),
    ],
)
def test_impossible_scores_are_refused(policy: infini.RetentionPolicy, message: str) -> None:
    model = infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=policy)
    with pytest.raises(InputError, match=message), torch.no_grad():
        model(text(1, 90))


class LatestAsIntegers(infini.RetentionPolicy):
    """Policy with integer scores that float32 cannot tell apart, and a float64 state."""

    state = ("count",)

    def score(self, pairs: HeldPairs) -> Tensor:
        pairs.state["count"] = pairs.state["count"].double() + 1
        return pairs.positions + 2**40


@torch.no_grad()
def test_integer_scores_are_exact_and_state_is_float32() -> None:
    model = infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=LatestAsIntegers())
    retained = cache_of(model(text(1, 110))).states[0].retained
    assert retained.positions[0, 0].tolist() == list(range(85, 90)), "left the window at 96 tokens"
    assert retained.policy_state.dtype == torch.float32


class FirstHeadInfinite(infini.RetentionPolicy):
    """Policy that scores all pairs of the first head +inf."""

    def score(self, pairs: HeldPairs) -> Tensor:
        scores = pairs.positions.float()
        scores[:, 0] = torch.inf
        return scores


@torch.no_grad()
def test_adakv_keeps_every_heads_share_beside_infinite_scores() -> None:
    model = infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=AdaKV(FirstHeadInfinite()))
    counts = cache_of(model(text(1, 120))).states[0].retained.counts
    assert counts.tolist() == [[9, 1]]


class LatestOfHead(infini.RetentionPolicy):
    """Policy whose attributes a test sets."""

    def __init__(self, name: str, value: object):
        setattr(self, name, value)

    def score(self, pairs: HeldPairs) -> Tensor:
        return pairs.positions.float()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention", "mean"), ("state", "score"), ("state", ("a", "a")), ("min_share", 2.0),
        ("min_share", float("nan")), ("last_queries", 0), ("query_decay", float("nan")),
    ],
)  # fmt: skip
def test_impossible_attributes_are_refused_by_object_and_name(
    name: str, value: object, registry: None
) -> None:
    with pytest.raises(InputError, match=rf"^LatestOfHead\.{name}"):
        infini.retrofit(tiny("llama"), "window", **OPTIONS, policy=LatestOfHead(name, value))
    infini.register_policy("latest", lambda: LatestOfHead(name, value))
    with pytest.raises(InputError, match=rf"^latest\.{name}"):
        infini.retrofit(tiny("llama"), "window", **OPTIONS, policy="latest")


@pytest.mark.parametrize("name", ["window", "full", "all", "", "a,b"])
def test_names_with_a_meaning_of_their_own_are_not_registered(name: str, registry: None) -> None:
    with pytest.raises(InputError, match=r"^name must consist of letters"):
        infini.register_policy(name, SmallestKeyNorm)


def register_share(share: float) -> None:
    infini.register_policy("of_share", lambda: AdaKV("h2o", share))


def test_other_lambda_does_not_replace_a_registered_one(registry: None) -> None:
    for _ in range(2):  # as a notebook does
        infini.register_policy("latest", lambda: Weighted())
    with pytest.raises(InputError, match="'latest' is registered already"):
        infini.register_policy("latest", lambda: SmallestKeyNorm())
    register_share(0.1)
    register_share(0.1)
    with pytest.raises(InputError, match="'of_share' is registered already"):
        register_share(0.2)


def test_factory_that_returns_no_policy_is_refused(registry: None) -> None:
    infini.register_policy("latest", lambda: {})
    with pytest.raises(InputError, match="its factory must return a RetentionPolicy object"):
        infini.retrofit(tiny("llama"), "window", **OPTIONS, policy="latest")


def test_two_functions_cannot_have_one_name() -> None:
    infini.register_policy("lambda_of_this_test", lambda: Weighted((1.0,)))
    infini.register_policy("lambda_of_this_test", lambda: Weighted((1.0,)))  # the same again
    with pytest.raises(InputError, match="'lambda_of_this_test' is registered already"):
        infini.register_policy("lambda_of_this_test", lambda: Weighted((2.0,)))


def test_attributes_of_an_object_are_checked() -> None:
    policy = Weighted()
    policy.attention = "mean"  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"Weighted.attention must be 'max', 'sum' or None"):
        infini.retrofit(tiny("llama"), "window", window=7, retained=3, policy=policy)
