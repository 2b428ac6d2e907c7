"""Retrieval: the answers to questions at the end of long texts with hidden facts, scored.

Beside the exact match there are an answer's log-probability and its tokens' ranks, which even a
small base moves.

A fact tests the memory only if its distance is beyond the exact context: the last segment, or
window and sinks. A depth near 1 is within it, whatever the version.
"""

from collections.abc import Iterator
from itertools import groupby

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini.choices import MemoryMode
from infini.console.progress import progress
from infini.errors import InputError
from infini.evaluation.estimates import Estimate, Metrics, with_errors
from infini.evaluation.losses import BATCH_TOKENS
from infini.evaluation.retrieval_texts import Haystacks, Question, RetrievalText
from infini.model.architectures import OutputHead, output_head
from infini.model.forward import forward_documents, memory_mode
from infini.model.modules import segmented_layers, window_layers
from infini.model.segmented.run import LayerStates, run_decoder, run_segments, stop_after

ANSWER_FIGURES = ("log_prob", "rank", "exact")
QUESTION_KEYS = ("text", "task", "segments", "pairs", "sample", "depth", "distance")


@torch.no_grad()
def last_segment_states(
    model: PreTrainedModel, tokens: Tensor, segment_length: int, memory: MemoryMode
) -> Tensor:
    """Compute the hidden states of texts' last segments, as the model reads documents.

    Segments before the last skip the layers above the last memory: only the memory crosses.

    Args:
        model: Any model.
        tokens: (B, S·L).
        segment_length: L.
        memory: The model's own, or kept empty ("off").

    Returns:
        (B, L, d).
    """
    if window_layers(model):
        with memory_mode(model, memory):
            hidden, _ = forward_documents(model, tokens, segment_length)
        return hidden[:, -segment_length:]
    states: LayerStates = {}
    modules = segmented_layers(model)
    if memory == "own" and modules:
        before = tokens[:, :-segment_length]
        lengths = torch.full((len(before),), before.shape[1])
        with stop_after(modules[max(modules)]):
            run_decoder(model.get_decoder(), before, lengths, segment_length, states)
    hidden, _ = run_segments(model, tokens[:, -segment_length:], segment_length, states)
    return hidden


@torch.no_grad()
def score_retrieval(model: PreTrainedModel, haystacks: Haystacks, full: int = 0) -> pd.DataFrame:
    """Score all questions.

    Args:
        model: Any model.
        haystacks: The texts.
        full: Longest text, in tokens, that is also read by full attention (an untouched base).

    Returns:
        A row per question: `QUESTION_KEYS`; the figures of its answer (`answer_figures`). The
        same with suffix _off: the memory kept empty, which for a window version is the base's
        plain window; and _full: by full attention, NaN on longer texts.
    """
    rows, length, number = [], haystacks.length, 0
    for texts in progress(list(_batches(haystacks)), "retrieval"):
        tokens, head = (
            torch.stack([text.tokens for text in texts]).to(model.device),
            output_head(model),
        )
        ends = {
            "": last_segment_states(model, tokens, length, "own"),
            "_off": last_segment_states(model, tokens, length, "off"),
        }
        if tokens.shape[1] <= full:
            whole = model.get_decoder()(tokens, use_cache=False).last_hidden_state
            ends["_full"] = whole[:, -length:]
        for i, text in enumerate(texts):
            for question in text.questions:
                keys = (number + i, *text[:4], question.depth, question.distance)
                row = dict(zip(QUESTION_KEYS, keys, strict=True))
                for suffix, hidden in ends.items():
                    figures = _measure(head, hidden[i], tokens[i], question, text.task)
                    row |= {f"{name}{suffix}": value for name, value in figures.items()}
                rows.append(row)
        number += len(texts)
    return pd.DataFrame(rows)


def _batches(haystacks: Haystacks) -> Iterator[list[RetrievalText]]:
    """Yield texts of one length, as many as a forward pass takes."""
    for (_, tokens), same in groupby(haystacks.texts(), lambda t: (t.task, len(t.tokens))):
        texts, size = list(same), max(1, BATCH_TOKENS // tokens)
        yield from (texts[i : i + size] for i in range(0, len(texts), size))


def _measure(
    head: OutputHead, hidden: Tensor, tokens: Tensor, question: Question, task: str
) -> dict[str, float]:
    """Score one answer from the hidden states (L, d) of the text's last tokens."""
    answer = tokens[question.start : question.start + question.length]  # (n,)
    first = question.start - 1 - (len(tokens) - len(hidden))
    return answer_figures(head, hidden[first : first + len(answer)], answer, task)


def answer_figures(head: OutputHead, hidden: Tensor, answer: Tensor, task: str) -> dict[str, float]:
    """Score one answer, each of whose tokens is predicted after the ones before.

    Args:
        head: The output head.
        hidden: Last hidden states of the tokens that predict the answer's, (n, d).
        answer: The answer's tokens, (n,).
        task: Name in errors.

    Returns:
        `ANSWER_FIGURES`: log_prob, the answer's log-probability in nats; rank, mean over its
        tokens, 0 for the likeliest; exact, 1 if all ranks are 0, so that greedy decoding gives
        the answer.

    Raises:
        InputError: A probability is not finite.
    """
    log_p = head(hidden).double().log_softmax(-1)  # (n, V)
    if not log_p.isfinite().all():
        raise InputError(f"{task}: a probability is not finite: the model's weights are broken")
    own = log_p.gather(1, answer[:, None])  # (n, 1)
    ranks = (log_p >= own).sum(1) - 1  # a tie does not count as the likeliest
    return {
        "log_prob": own.sum().item(),
        "rank": ranks.double().mean().item(),
        "exact": float((ranks == 0).all()),
    }


def retrieval_metrics(questions: pd.DataFrame) -> Metrics:
    """Average the scores of questions by task.

    Args:
        questions: What `score_retrieval` returned.

    Returns:
        By task the means over questions, and gain, the nats that the memory adds to an answer's
        log-probability, with its error over texts: questions of one text are not independent.
    """
    return {task: _task_metrics(rows) for task, rows in questions.groupby("task", sort=False)}


def _task_metrics(table: pd.DataFrame) -> Metrics:
    names = [f"{name}{suffix}" for suffix in ("", "_off", "_full") for name in ANSWER_FIGURES]
    known = [name for name in names if name in table and table[name].notna().any()]
    gain = (table["log_prob"] - table["log_prob_off"]).groupby(table["text"]).mean()
    error = gain.sem() if len(gain) > 1 else None
    means = {name: Estimate(table[name].mean()) for name in known}
    return with_errors(**means, gain=Estimate(gain.mean(), error))
