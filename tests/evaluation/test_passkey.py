"""Passkey texts, and their scores against whole passes."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import PasskeyProtocol
from infini.evaluation.passkey import Haystacks, last_segment, passkey, summary
from infini.model.architectures import decoder_layers, head_of
from infini.model.reading import memory_used
from infini.model.retrofit import retrofit
from infini.model.segments import run_segments
from toy import bigram_model

L = 16
PROTOCOL = PasskeyProtocol(lengths=[12, 14], depths=[0.0, 0.5, 1.0], samples=2)


@pytest.fixture
def haystacks(base_folder: Path) -> Haystacks:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 300, (3, 100), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    documents = Pieces(tokens, mask, tokens.sum(1), torch.arange(3))
    return Haystacks(AutoTokenizer.from_pretrained(base_folder), documents, L, PROTOCOL)


def test_a_haystack_hides_the_key_and_asks_for_it(haystacks: Haystacks) -> None:
    texts = {}
    for case in haystacks.cases():
        tokens, n = haystacks.build(*case)
        assert len(tokens) == case[0] * L
        assert torch.equal(tokens, haystacks.build(*case)[0])
        key = tokens[-n:]
        text = haystacks.tokenizer.decode(tokens)
        number = haystacks.tokenizer.decode(key).strip()
        assert number.isdigit()
        assert text.count(number) == 3
        assert text.endswith(f"What is the pass key? The pass key is {number}")
        texts[case] = text
    for sample in range(2):
        assert texts[12, 0.0, sample].startswith(" The pass key is")
        assert " is the pass key. What is the pass key?" in texts[12, 1.0, sample]
        middle = texts[12, 0.5, sample].index("Remember") / len(texts[12, 0.5, sample])
        assert 0.2 < middle < 0.7
    assert len(set(texts.values())) == len(texts)


def test_a_text_too_short_for_the_key_is_named(haystacks: Haystacks) -> None:
    with pytest.raises(InputError, match=r"evaluate.passkey.lengths: .* 2 segments hold 32"):
        haystacks.build(2, 0.5, 0)


@pytest.mark.parametrize(
    ("method", "layer"), [("replace", 0), ("replace", 1), ("parallel", 0), ("parallel", 1)]
)
def test_the_last_segment_needs_no_layer_above_the_last_memory(
    model: PreTrainedModel, method: str, layer: int
) -> None:
    torch.manual_seed(1)
    options = {"local": "linear", "init": "random"} if method == "replace" else {"alpha": 1.0}
    retrofit(model, method, [layer], L, **options)  # type: ignore[arg-type]
    tokens = torch.randint(300, (2, 5 * L))
    with torch.no_grad():
        whole, _ = run_segments(model, tokens, L)
        alone, _ = run_segments(model, tokens[:, -L:], L)
    torch.testing.assert_close(last_segment(model, tokens, L, memory=True), whole[:, -L:])
    torch.testing.assert_close(last_segment(model, tokens, L, memory=False), alone)
    assert not torch.allclose(whole[:, -L:], alone)
    assert all(not layer._forward_hooks for layer in decoder_layers(model))


def test_scores_are_those_of_a_whole_pass(model: PreTrainedModel, haystacks: Haystacks) -> None:
    torch.manual_seed(1)
    retrofit(model, "parallel", [0], L, alpha=1.0)
    table = passkey(model, haystacks)
    assert len(table) == len(haystacks.cases())
    assert (table["log_prob"] != table["log_prob_off"]).all()
    for row in table.to_dict("records"):
        tokens, n = haystacks.build(row["segments"], row["depth"], row["sample"])
        for memory, suffix in (("own", ""), ("off", "_off")):
            with torch.no_grad(), memory_used(model, memory):
                hidden, _ = run_segments(model, tokens[None], L)
                log_p = head_of(model)(hidden[0]).double().log_softmax(-1)
            nats, ranks = 0.0, []
            for place in range(len(tokens) - n, len(tokens)):
                own = log_p[place - 1, tokens[place]]
                nats += own.item()
                ranks.append(int((log_p[place - 1] > own).sum()))
            assert row[f"log_prob{suffix}"] == pytest.approx(nats, abs=1e-4)
            assert row[f"rank{suffix}"] == sum(ranks) / n
            assert row[f"exact{suffix}"] == float(max(ranks) == 0)


def test_an_untouched_base_has_no_memory_to_gain_from(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    found = summary(passkey(model, haystacks))
    assert found["gain"] == 0
    assert found["log_prob"] == found["log_prob_off"]


def test_a_model_that_knows_the_key_retrieves_it(haystacks: Haystacks) -> None:
    """One that expects each of the answer's tokens after the one before it, and its opposite."""
    haystacks.protocol = PasskeyProtocol(lengths=[12], depths=[0.5], samples=1)
    tokens, n = haystacks.build(12, 0.5, 0)
    answer = tokens[-n - 1 :].tolist()
    followers = dict(itertools.pairwise(answer))
    assert len(followers) == n  # no token of the answer has two followers
    (found,) = passkey(bigram_model(followers), haystacks).to_dict("records")
    assert (found["exact"], found["rank"]) == (1, 0)
    assert -0.01 < found["log_prob"] < 0
    others = {token: (follower + 1) % 300 for token, follower in followers.items()}
    (found,) = passkey(bigram_model(others), haystacks).to_dict("records")
    assert found["exact"] == 0
    assert found["rank"] >= 1


def test_a_probability_that_is_not_finite_is_refused(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    head_of(model).weight[7, 0] = torch.nan
    with pytest.raises(InputError, match="passkey: a probability is not finite"):
        passkey(model, haystacks)
