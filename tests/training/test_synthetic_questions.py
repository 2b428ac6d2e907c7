"""Synthetic retrieval questions in training documents: which are put in, what is learned."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from infini.choices import RETENTION_BLOCK
from infini.corpus.haystacks import FactSampler
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import FullProtocol
from infini.model.base import load_base
from infini.model.modules import infini_parameters, retained_modules
from infini.model.retrofit import retrofit
from infini.paths import DOCUMENTS, TEACHER, Version
from infini.training import long_context, loop
from infini.training.config import DocumentRecipe
from infini.training.long_context import (
    DocumentBatch,
    DocumentTraining,
    fit_retention_policy,
    train_on_documents,
)
from infini.training.loop import Loss
from infini.training.seeds import TrainingRun
from infini.training.teacher import record_log_probs
from toy import batch, long_recipe, some_pieces, window_recipe, write_documents

L = 16
WINDOWS = [8, 32, 62]
RUN = TrainingRun(Version("toy"), "finetune")


@pytest.fixture
def facts(base_folder: Path) -> FactSampler:
    return FactSampler(AutoTokenizer.from_pretrained(base_folder))


@pytest.mark.parametrize(("share", "counts"), [(0.0, {0}), (0.4, {1, 2}), (1.0, {3})])
def test_question_share_is_the_share_of_batches(
    model: PreTrainedModel, share: float, counts: set[int]
) -> None:
    documents = DocumentTraining(
        model, some_pieces([64] * 3, 64), L, long_recipe(question_share=share)
    )
    epochs = [[one.question_seed is not None for one in documents.batches(i)] for i in range(300)]
    assert {sum(epoch) for epoch in epochs} == counts
    for batches in zip(*epochs, strict=True):  # at any place in an epoch
        assert sum(batches) / 300 == pytest.approx(share, abs=0.1)


def test_losses_of_questions_cover_answers_alone(
    model: PreTrainedModel, facts: FactSampler
) -> None:
    text = some_pieces([300, 280, 300], 300)
    retrofit(model, "window", window=8, sinks=2, retained=4)
    recipe = window_recipe(question_share=0.5, batch_size=2)
    documents, plain = (
        DocumentTraining(model, text, L, recipe, None, facts),
        DocumentTraining(model, text, L, recipe),
    )
    with_questions = batch(1, 2, question_seed=7)
    filled = documents.put_questions(with_questions)
    assert torch.equal(filled.tokens[0], text.tokens[0]), "not in this batch"
    changed = filled.tokens != text.tokens
    assert changed[1:].any(1).all()
    assert not (changed & ~text.mask).any(), "padding is unchanged"
    answers = filled.mask[1:]
    assert re.fullmatch(r"( \d{5})+", facts.tokenizer.decode(filled.tokens[1:][answers]))
    (loss,) = documents.losses(with_questions)
    assert (loss.items, loss.step_items, loss.step) == (int(answers.sum()), loss.items, True)
    with torch.no_grad():
        logits = model(filled.tokens[1:], use_cache=False).logits[:, :-1].log_softmax(-1)
    own = logits.gather(2, filled.tokens[1:, 1:, None])[..., 0]
    torch.testing.assert_close(loss.total.detach(), -own[answers[:, 1:]].sum())
    assert torch.equal(next(documents.losses(with_questions)).total, loss.total), (
        "the batch's seed decides the facts"
    )
    assert not torch.equal(
        documents.put_questions(batch(1, 2, question_seed=8)).tokens, filled.tokens
    )
    # Batches without questions are as without facts
    (loss,), (same,) = documents.losses(batch(1, 2)), plain.losses(batch(1, 2))
    assert torch.equal(loss.total, same.total)
    assert loss.items == same.items == 279 + 299
    assert torch.equal(text.tokens, some_pieces([300, 280, 300], 300).tokens)


def test_losses_of_answers_are_cross_entropy_despite_a_teacher(
    model: PreTrainedModel, facts: FactSampler
) -> None:
    text = some_pieces([300, 300], 300)
    teacher = record_log_probs(model, text, FullProtocol(context=64, stride=64))
    retrofit(model, "window", window=8, sinks=2)
    recipe = window_recipe(objective="distillation", question_share=0.5)
    with_teacher = DocumentTraining(model, text, L, recipe, teacher, facts)
    alone = DocumentTraining(model, text, L, recipe, None, facts)
    for one_batch, same in ((batch(0, question_seed=3), True), (batch(0), False)):
        one, other = (next(documents.losses(one_batch)) for documents in (with_teacher, alone))
        assert one.items == other.items
        assert torch.equal(one.total, other.total) == same


def test_question_weight_scales_the_gradient_of_batches_with_questions_alone(
    model: PreTrainedModel, facts: FactSampler
) -> None:
    text = some_pieces([300, 280], 300)
    retrofit(model, "window", window=8, sinks=2, retained=4)
    weights = retained_modules(model)[0].weight

    def gradients(weight: float) -> list[Tensor]:
        recipe = window_recipe(question_share=0.5, question_weight=weight, batch_size=2)
        documents = DocumentTraining(model, text, L, recipe, None, facts)
        found = []
        for one in (batch(0, 1), batch(0, 1, question_seed=7)):
            (loss,) = documents.losses(one)
            found += torch.autograd.grad(loss.total / loss.step_items, weights)
        return found

    (plain, questions), (plain_weighed, questions_weighed) = gradients(1.0), gradients(0.25)
    assert questions.any()
    torch.testing.assert_close(questions_weighed, questions * 0.25)
    assert torch.equal(plain_weighed, plain)


@pytest.mark.parametrize(
    ("recipe", "window", "context"),
    [
        (long_recipe(), None, L),
        (window_recipe(), None, 10),
        (window_recipe(layer={"window": 20, "sinks": 3}), None, 23),
        (window_recipe(windows=WINDOWS), 62, 64),
        (
            window_recipe(layer={"window": 8, "sinks": 2, "retained": 4}),
            None,
            10 + RETENTION_BLOCK - 1,
        ),
    ],
)
def test_questions_lie_beyond_the_exact_context(
    model: PreTrainedModel,
    facts: FactSampler,
    recipe: DocumentRecipe,
    window: int | None,
    context: int,
) -> None:
    assert recipe.exact_context(L, window) == context
    text, gaps = some_pieces([250], 250), []  # room for one fact
    (filler,) = facts.tokenizer("#")["input_ids"]
    text.tokens.fill_(filler)
    documents = DocumentTraining(model, text, L, recipe, None, facts)
    for seed in range(60):
        (tokens,) = documents.put_questions(batch(0, window=window, question_seed=seed)).tokens
        first, *_, last = torch.where(tokens != filler)[0].tolist()
        gaps.append(int((tokens[first:last] == filler).sum()))
    assert context <= min(gaps) < 1.2 * context < 100 < max(gaps)


def test_losses_of_answers_are_no_divergence(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents([256] * 6)
    text = Pieces.load(DOCUMENTS / "train.parquet")
    # With a window of nearly the whole text the student agrees with the teacher at once
    record_log_probs(model, text, FullProtocol(context=64, stride=64)).save(TEACHER)
    retrofit(model, "window", window=60, sinks=2)
    recipe = window_recipe(objective="distillation", question_share=0.5)
    fit = train_on_documents(model, recipe, L, RUN).fit
    text_loss, answer_loss = fit.first_losses["text"], fit.first_losses["answers"]
    assert answer_loss > loop.DIVERGED * text_loss > 0


def test_killed_training_with_questions_resumes_to_the_same_bits(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents([256, 230, 256, 256])
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real, has_questions = DocumentTraining.losses, list[bool]()
    recipe = window_recipe(question_share=0.5, windows=[8, 16], epochs=2, lr=1e-2)

    def train(fail_at: int | None = None) -> dict[str, torch.Tensor]:
        def losses(self: DocumentTraining, batch: DocumentBatch) -> Iterator[Loss]:
            has_questions.append(batch.question_seed is not None)
            if len(has_questions) == fail_at:
                raise KeyboardInterrupt
            yield from real(self, batch)

        has_questions.clear()
        monkeypatch.setattr(DocumentTraining, "losses", losses)
        torch.manual_seed(0)
        model = retrofit(load_base(str(base_folder)), "window", window=8, sinks=2, retained=4)
        done = train_on_documents(model, recipe, L, RUN)
        assert [len(done.fit.curve), done.train_size, done.val_size] == [2, 4, 4]
        done.checkpoint.remove()
        return {name: tensor.detach().clone() for name, tensor in infini_parameters(model).items()}

    expected = train()
    assert (len(has_questions), sum(has_questions)) == (8, 4)
    trained = [bool(t.any()) for name, t in expected.items() if name.endswith("retained.weight")]
    assert trained == [True, True], "the bias of retained pairs"
    for fail_at in (4, 7):
        with pytest.raises(KeyboardInterrupt):
            train(fail_at)
        got = train()
        assert len(has_questions) == 8 - fail_at + 1
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_policy_is_fitted_to_questions_where_the_training_asks_some(
    model: PreTrainedModel, facts: FactSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents([300] * 3)
    layer = {"window": 8, "sinks": 2, "retained": 4, "policy": "learned"}
    retrofit(model, "window", **layer)
    texts = list[torch.Tensor]()
    monkeypatch.setattr(long_context, "fit_policy", lambda _, fitted: texts.extend(fitted))
    plain = Pieces.load(DOCUMENTS / "train.parquet").unpadded()
    fit_retention_policy(model, window_recipe(layer=layer), L)
    assert [*map(torch.Tensor.tolist, texts)] == [*map(torch.Tensor.tolist, plain)]
    texts.clear()
    fit_retention_policy(model, window_recipe(layer=layer, question_share=0.1), L)
    asked = [text for text in texts if "What is the" in facts.tokenizer.decode(text)]
    assert (len(texts), len(asked)) == (6, 3)


def test_documents_too_short_for_questions_are_rejected(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents([64, 64])
    retrofit(model, "window", window=8, sinks=2)
    with pytest.raises(InputError, match=r"^question_share: a document of 64 tokens is too short"):
        train_on_documents(
            model, window_recipe(question_share=1.0), L, TrainingRun(Version("toy"), "finetune")
        )
