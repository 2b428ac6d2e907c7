"""Perplexity protocols against Hugging Face's loss, slow loops and models of known perplexity."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from infini import params
from infini.corpus.config import Shares
from infini.corpus.pieces import Pieces
from infini.corpus.sources import read_texts
from infini.corpus.splits import split_of
from infini.errors import InputError
from infini.evaluation.perplexity import score_documents, score_double_shift, score_full_attention
from infini.evaluation.score import Score
from infini.model.architectures import output_head
from infini.model.base import load_base, load_tokenizer
from infini.model.retrofit import remove, retrofit, sliding_window
from infini.model.segmented.run import run_segments
from toy import some_pieces

L = 16
RAGGED = [48, 33, 40, 17, 3]


@pytest.fixture(params=["base", "replace", "parallel"])
def any_model(request: pytest.FixtureRequest, model: PreTrainedModel) -> PreTrainedModel:
    """An untouched base, one with a replaced layer, one with parallel memories in both layers."""
    torch.manual_seed(1)
    if request.param == "replace":
        retrofit(model, "replace", [1], L, local="linear", init="random")
    elif request.param == "parallel":
        retrofit(model, "parallel", [0, 1], L, alpha=1.0)
    return model


def log_p(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return log-probabilities (T, V) after each of (T,) tokens of one segment."""
    with torch.no_grad():
        return F.log_softmax(model(tokens[None]).logits[0].double(), -1)


def slow(
    text: Pieces, of_document: Callable[[Tensor], list[float]]
) -> tuple[float, list[float], int]:
    """Return total nats, nats by document and the number of tokens, document by document."""
    nats = [of_document(row[mask]) for row, mask in zip(text.tokens, text.mask, strict=True)]
    by_document = [sum(document) for document in nats]
    return sum(by_document), by_document, sum(map(len, nats))


def agrees(score: Score, expected: tuple[float, list[float], int]) -> None:
    total, by_document, count = expected
    assert score.tokens == count
    assert score.total == pytest.approx(total, rel=1e-5)
    assert score.nats.sum(1).tolist() == pytest.approx(by_document, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_short_samples_match_hugging_face_loss(model: PreTrainedModel) -> None:
    text = some_pieces([16, 11, 8], L)
    score = score_documents(model, text, L)

    def loss(tokens: Tensor) -> list[float]:
        mean = model(tokens[None], labels=tokens[None]).loss.item()
        return [mean] * (len(tokens) - 1)

    agrees(score, slow(text, loss))
    assert score.bits_per_byte == pytest.approx(score.total / math.log(2) / 35, rel=1e-5)


def test_documents_by_segments_pass_on_the_memory_alone(any_model: PreTrainedModel) -> None:
    text = some_pieces(RAGGED, 48)

    @torch.no_grad()
    def by_segments(tokens: Tensor) -> list[float]:
        states, nats = None, []
        for start in range(0, len(tokens), L):
            segment, following = tokens[start : start + L], tokens[start + 1 : start + 1 + L]
            hidden, states = run_segments(any_model, segment[None], L, states)
            scores = F.log_softmax(output_head(any_model)(hidden[0]).double(), -1)
            nats += [-scores[i, token].item() for i, token in enumerate(following)]
        return nats

    agrees(score_documents(any_model, text, L), slow(text, by_segments))


def test_memory_off_equals_separate_segments(any_model: PreTrainedModel) -> None:
    text = some_pieces(RAGGED, 48)

    def alone(tokens: Tensor) -> list[float]:
        nats = []
        for start in range(0, len(tokens), L):
            scores = log_p(any_model, tokens[start : start + L])
            following = tokens[start + 1 : start + 1 + L]
            nats += [-scores[i, token].item() for i, token in enumerate(following)]
        return nats

    off = score_documents(any_model, text, L, memory="off")
    agrees(off, slow(text, alone))
    has_memory = hasattr(any_model, "infini_config")
    assert (
        score_documents(any_model, text, L).total != pytest.approx(off.total, rel=1e-6)
    ) == has_memory


def test_double_shift_matches_the_research_logs_loop(model: PreTrainedModel) -> None:
    text = some_pieces(RAGGED, 48)

    def loop(tokens: Tensor) -> list[float]:
        nats = []
        for segment in tokens.split(L):
            if len(segment) > 2:
                loss = model(segment[None, :-1], labels=segment[None, 1:]).loss  # shifts once more
                nats += [loss.item()] * (len(segment) - 2)
        return nats

    agrees(score_double_shift(model, text, L), slow(text, loop))


def test_double_shift_passes_on_the_memory(any_model: PreTrainedModel) -> None:
    text = some_pieces(RAGGED, 48)

    @torch.no_grad()
    def loop(tokens: Tensor) -> list[float]:
        states, nats = None, []
        for segment in tokens.split(L):
            if len(segment) < 2:
                break
            hidden, states = run_segments(any_model, segment[None, :-1], L - 1, states)
            scores = F.log_softmax(output_head(any_model)(hidden[0]).double(), -1)
            nats += [-scores[i, token].item() for i, token in enumerate(segment[2:])]
        return nats

    agrees(score_double_shift(any_model, text, L), slow(text, loop))


@pytest.mark.parametrize(("context", "stride"), [(16, 4), (32, 32), (64, 8)])
def test_full_attention_matches_the_strided_recipe(
    model: PreTrainedModel, context: int, stride: int
) -> None:
    """Hugging Face's guide: windows move by `stride`, labels of what was scored before are -100.

    The guide weights windows by their targets, roughly; sums of nats have no such slack.
    """
    text = some_pieces([60, 41, 16], 60)

    def strided(tokens: Tensor) -> list[float]:
        nats, previous_end = [], 0
        for begin in range(0, len(tokens), stride):
            end = min(begin + context, len(tokens))
            window = tokens[None, begin:end]
            labels = window.clone()
            labels[:, : -(end - previous_end)] = -100
            # A window's first label, which nothing in it predicts, is the one before's last.
            logits = model(window).logits[0, :-1].double()
            losses = F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="none")
            nats += losses[labels[0, 1:] != -100].tolist()
            previous_end = end
            if end == len(tokens):
                break
        return nats

    total, by_document, count = slow(text, strided)
    score = score_full_attention(model, text, context, stride)
    if context > stride:
        agrees(score, (total, by_document, count))
    else:
        # Windows side by side: the recipe loses every window's first token, ours scores it.
        assert score.tokens == sum(n - 1 for n in (60, 41, 16)) == count + 2


def test_full_attention_without_overlap_scores_each_token_once(model: PreTrainedModel) -> None:
    text = some_pieces([60], 60)

    def by_target(tokens: Tensor) -> list[float]:
        nats = []
        for target in range(1, 60):
            # The first window that reaches the target's predecessor.
            start = 32 * ((target - 1) // 32)
            nats.append(-log_p(model, tokens[start:target])[-1, tokens[target]].item())
        return nats

    agrees(score_full_attention(model, text, 32, 32), slow(text, by_target))


PROTOCOLS: list[Callable[[PreTrainedModel, Pieces], Score]] = [
    lambda model, text: score_documents(model, text, L),
    lambda model, text: score_documents(model, text, L, memory="off"),
    lambda model, text: score_full_attention(model, text, 32, 8),
    lambda model, text: score_double_shift(model, text, L),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_uniform_model_has_the_perplexity_of_its_vocabulary(
    any_model: PreTrainedModel, protocol: Callable[[PreTrainedModel, Pieces], Score]
) -> None:
    nn.init.zeros_(output_head(any_model).weight)
    if protocol is PROTOCOLS[2]:
        remove(any_model)  # sliding is for models without a memory
    score = protocol(any_model, some_pieces(RAGGED, 48))
    assert score.perplexity == pytest.approx(300, rel=1e-5)
    expected = score.tokens * math.log2(300) / score.bytes.sum().item()
    assert score.bits_per_byte == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_protocols_reject_a_loss_that_is_not_finite(model: PreTrainedModel, value: float) -> None:
    output_head(model).weight[7, 0] = value
    with pytest.raises(InputError, match=r"^segmented: a loss is not finite"):
        score_documents(model, some_pieces(RAGGED, 48), L, title="segmented")
    with pytest.raises(InputError, match=r"^perplexity: a loss is not finite"):
        score_full_attention(model, some_pieces(RAGGED, 48), 32, 8)


V, SCALE = 32, 2.0


def copier() -> PreTrainedModel:
    """Return a model that predicts token + 1: only embedding, norm and head matter."""
    config = GPTNeoXConfig(
        vocab_size=V, hidden_size=V, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=V, max_position_embeddings=64,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    layer = model.gpt_neox.layers[0]
    for linear in (layer.attention.dense, layer.mlp.dense_4h_to_h):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    model.gpt_neox.embed_in.weight.copy_(torch.eye(V))
    model.lm_head.weight.copy_(SCALE * torch.eye(V).roll(1, 0))
    return model


def copier_nats(expected: bool) -> float:
    """Return the copier's loss of the token it predicts, or of any other, in closed form."""
    deviation = math.sqrt((1 - 1 / V) / V + 1e-5)  # of a one-hot vector, as LayerNorm has it
    hit, miss = SCALE * (1 - 1 / V) / deviation, SCALE * (-1 / V) / deviation
    return math.log(math.exp(hit) + (V - 1) * math.exp(miss)) - (hit if expected else miss)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("with_memory", [False, True])
def test_copier_has_the_loss_of_its_closed_form(
    protocol: Callable[[PreTrainedModel, Pieces], Score], with_memory: bool
) -> None:
    model, text = copier(), some_pieces(RAGGED, 48)
    if with_memory and protocol is not PROTOCOLS[2]:
        retrofit(model, "parallel", [0], L, alpha=0.0)
    jumps = torch.arange(48) % 7 == 0  # the token is not the one expected, but 5 further on
    text.tokens = (torch.where(jumps, 5, 1).cumsum(0) % V) * text.mask
    if protocol is PROTOCOLS[3]:
        expected = copier_nats(False)  # the token after next is never token + 1
    else:
        misses = sum(int(jumps[1:n].sum()) for n in RAGGED)
        hits = sum(n - 1 for n in RAGGED) - misses
        expected = (hits * copier_nats(True) + misses * copier_nats(False)) / (hits + misses)
    assert protocol(model, text).perplexity == pytest.approx(math.exp(expected), rel=1e-5)


def test_window_stays_good_far_beyond_the_trained_context() -> None:
    """The embedded base, trained on 1,024 tokens, reads 16,384 of an unseen text."""
    base, tokenizer = load_base("data/base"), load_tokenizer("data/base")
    shares = params.get("data.shares", Shares)
    unseen = (text.text for text in read_texts("sotu") if split_of(text.id, shares) != "base")
    longest = tokenizer(max(unseen, key=len))["input_ids"][:16384]
    tokens = torch.tensor([longest])
    assert tokens.shape[1] == 16384
    text = Pieces(tokens, torch.ones_like(tokens, dtype=torch.bool), *torch.ones(2, 1).long())
    with sliding_window(base, 256, 4):
        nats = score_documents(base, text, 256).nats[0]
    within, *beyond = (part.mean() for part in (nats[256:1024], *nats[1024:-1].split(1024)))
    assert max(abs(part - within) for part in beyond) < 0.6  # parts of a text differ
    whole = base(tokens[:, :4096]).logits[0, 2048:-1].log_softmax(-1)
    full = -whole.gather(1, tokens[0, 2049:4096, None]).mean()
    assert full > nats[2048:4095].mean() + 0.5  # full attention fails there
