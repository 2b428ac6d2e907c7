"""Retrieval: facts hidden in a long text, asked for at its end (`infini.corpus.haystacks`).

A pass key at a chosen depth; and recall, the codes of several words anywhere before the last
segment, some of them asked for. Filler is drawn from test documents. Bases too small to copy a
number still give a curve: beside the exact match, its log-probability and the ranks of its tokens.

A fact tests a memory only where it lies outside of what is seen exactly: the last segment, or the
window and the sinks. `distance` tells; a depth near 1 lies inside, whatever the version.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import MemoryMode
from infini.console.progress import progress
from infini.corpus.haystacks import Fact, Facts, insert
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import PasskeyProtocol, RecallProtocol
from infini.evaluation.estimates import Estimate, Metrics, with_errors
from infini.evaluation.losses import BATCH_TOKENS
from infini.model.architectures import Head, output_head
from infini.model.forward import forward_documents, memory_mode
from infini.model.segmented.layers import segmented_layers
from infini.model.segmented.run import States
from infini.model.segmented.segments import run_rows, run_segments, stopping_after
from infini.model.window.layer import window_layers

FIGURES = ("log_prob", "rank", "exact")
PLACE = ("text", "task", "segments", "pairs", "sample", "depth", "distance")


class Question(NamedTuple):
    """A fact that a text asks for."""

    start: int  # of the answer in the text
    length: int  # of the answer
    depth: float  # where the fact is: 0 the start, 1 right before the questions
    distance: int  # tokens between the fact's end and the answer


class Text(NamedTuple):
    """One with facts in it."""

    task: str  # "passkey" or "recall"
    segments: int
    pairs: int  # facts hidden
    sample: int
    tokens: Tensor  # (segments · L,)
    questions: list[Question]


class Haystacks:
    """The texts of one run."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        documents: Pieces,
        segment_length: int,
        passkey: PasskeyProtocol,
        recall: RecallProtocol | None = None,
    ):
        self.facts, self.length = Facts(tokenizer), segment_length
        self.passkey, self.recall = passkey, recall
        self.filler = documents.tokens[documents.mask]  # all documents, one after the other

    def texts(self) -> Iterator[Text]:
        """By task, then by length or by pairs."""
        p, r = self.passkey, self.recall
        for segments in p.lengths:
            for depth in p.depths:
                yield from (self.of_pass_key(segments, depth, s) for s in range(p.samples))
        if r is not None:
            for pairs in r.pairs:
                yield from (self.of_codes(r, pairs, sample) for sample in range(r.samples))

    def of_pass_key(self, segments: int, depth: float, sample: int) -> Text:
        """A pass key at `depth`."""
        seed = 1000 * sample + 10 * segments + int(10 * depth)
        fact = self.facts.pass_key(torch.Generator().manual_seed(seed))
        room = self._room("passkey.lengths", segments, [fact], [fact])
        tokens, questions = self._text(room, sample, [(depth, fact)], [fact])
        return Text("passkey", segments, 1, sample, tokens, questions)

    def of_codes(self, recall: RecallProtocol, pairs: int, sample: int) -> Text:
        """So many codes at random places before the last segment, the first ones asked for."""
        generator = torch.Generator().manual_seed(1000 * sample + pairs)
        facts = self.facts.codes(pairs, generator)
        asked = facts[: recall.questions]
        room = self._room("recall.pairs", recall.segments, facts, asked)
        ahead = (recall.segments - 1) * self.length - sum(len(fact.told) for fact in facts)
        if ahead < 0:
            raise InputError(
                f"params.yaml: evaluate.recall.pairs: {pairs} pairs take "
                f"{(recall.segments - 1) * self.length - ahead} tokens, the segments before the "
                f"last hold {(recall.segments - 1) * self.length}"
            )
        places = torch.randint(min(ahead, room) + 1, (pairs,), generator=generator).tolist()
        told = [(place / max(1, room), fact) for place, fact in zip(places, facts, strict=True)]
        tokens, questions = self._text(room, sample, told, asked)
        return Text("recall", recall.segments, pairs, sample, tokens, questions)

    def _room(self, key: str, segments: int, told: list[Fact], asked: list[Fact]) -> int:
        """Tokens of filler in so many segments; InputError where the facts are too long."""
        asking = [len(fact.asked) + len(fact.answer) for fact in asked]
        stops = (len(asked) - 1) * len(self.facts.stop)
        room = segments * self.length - sum(len(f.told) for f in told) - sum(asking) - stops
        if room < 0:
            raise InputError(
                f"params.yaml: evaluate.{key}: what is told and the questions alone take "
                f"{segments * self.length - room} tokens, {segments} segments hold "
                f"{segments * self.length}"
            )
        if (answers := sum(asking) + stops - len(asked[0].asked) + 1) > self.length:
            raise InputError(
                f"params.yaml: evaluate.{key.partition('.')[0]}: the answers take {answers} "
                f"tokens, the last segment holds {self.length}: ask for fewer"
            )
        return room

    def _text(
        self, room: int, sample: int, told: list[tuple[float, Fact]], asked: list[Fact]
    ) -> tuple[Tensor, list[Question]]:
        """Facts at their depths in the filler, and at its end questions about the first of them."""
        # Samples start at different places; a short corpus is read round and round.
        at = (sample * room + torch.arange(room)) % len(self.filler)
        stop = self.facts.stop
        asking = [torch.cat([f.asked, f.answer, stop]) for f in asked]
        asking[-1] = asking[-1][: -len(stop)]  # ends with the answer
        parts = [(round(depth * room), fact.told) for depth, fact in told]
        tokens, starts = insert(self.filler[at], [*parts, *((room, q) for q in asking)])
        questions, n = [], len(asked)
        for (depth, fact), told_at, asked_at in zip(told[:n], starts[:n], starts[-n:], strict=True):
            start = asked_at + len(fact.asked)
            distance = start - told_at - len(fact.told)
            questions.append(Question(start, len(fact.answer), depth, distance))
        return tokens, questions


@torch.no_grad()
def read_end(
    model: PreTrainedModel, tokens: Tensor, segment_length: int, memory: MemoryMode
) -> Tensor:
    """Hidden states (B, L, d) of the last L of (B, S·L) tokens, as the model reads documents.

    memory: its own, or kept empty ("off"). By segments, those before the last need no layer above
    the last memory: nothing else crosses.
    """
    if window_layers(model):
        with memory_mode(model, memory):
            hidden, _ = forward_documents(model, tokens, segment_length)
        return hidden[:, -segment_length:]
    states: States = {}
    modules = segmented_layers(model)
    if memory == "own" and modules:
        before = tokens[:, :-segment_length]
        lengths = torch.full((len(before),), before.shape[1])
        with stopping_after(modules[max(modules)]):
            run_rows(model.get_decoder(), before, lengths, segment_length, states)
    hidden, _ = run_segments(model, tokens[:, -segment_length:], segment_length, states)
    return hidden


@torch.no_grad()
def retrieval(model: PreTrainedModel, haystacks: Haystacks, full: int = 0) -> pd.DataFrame:
    """One row a question: `PLACE`; log_prob, rank, exact; the same with `_off`, with `_full`.

    log_prob: nats of the whole answer given what precedes it; rank: mean over its tokens, 0 the
    likeliest alone; exact: all of rank 0: greedy decoding gives the answer. `_off`: the
    memory kept empty, all that an untouched base has; of a window version that is the base's plain
    window. `_full`: by full attention, on texts of at most `full` tokens; an untouched base's
    ceiling.
    """
    rows, length, number = [], haystacks.length, 0
    for texts in progress(list(_batches(haystacks)), "retrieval"):
        tokens, head = (
            torch.stack([text.tokens for text in texts]).to(model.device),
            output_head(model),
        )
        ends = {
            "": read_end(model, tokens, length, "own"),
            "_off": read_end(model, tokens, length, "off"),
        }
        if tokens.shape[1] <= full:
            whole = model.get_decoder()(tokens, use_cache=False).last_hidden_state
            ends["_full"] = whole[:, -length:]
        for i, text in enumerate(texts):
            for question in text.questions:
                place = (number + i, *text[:4], question.depth, question.distance)
                row = dict(zip(PLACE, place, strict=True))
                for suffix, hidden in ends.items():
                    figures = _measure(head, hidden[i], tokens[i], question)
                    row |= {f"{name}{suffix}": value for name, value in figures.items()}
                rows.append(row)
        number += len(texts)
    return pd.DataFrame(rows)


def _batches(haystacks: Haystacks) -> Iterator[list[Text]]:
    """Texts of one length, as many as a forward pass takes."""
    for (_, tokens), same in groupby(haystacks.texts(), lambda t: (t.task, len(t.tokens))):
        texts, size = list(same), max(1, BATCH_TOKENS // tokens)
        yield from (texts[i : i + size] for i in range(0, len(texts), size))


def _measure(head: Head, hidden: Tensor, tokens: Tensor, question: Question) -> dict[str, float]:
    """Of one answer, from the hidden states (L, d) of the text's last tokens."""
    answer = tokens[question.start : question.start + question.length]  # (n,)
    first = question.start - 1 - (len(tokens) - len(hidden))
    log_p = head(hidden[first : first + len(answer)]).double().log_softmax(-1)  # (n, V)
    if not log_p.isfinite().all():
        raise InputError("passkey: a probability is not finite: the model's weights are broken")
    own = log_p.gather(1, answer[:, None])  # (n, 1)
    ranks = (log_p >= own).sum(1) - 1  # a tie is no answer
    return {
        "log_prob": own.sum().item(),
        "rank": ranks.double().mean().item(),
        "exact": float((ranks == 0).all()),
    }


def summary(table: pd.DataFrame) -> Metrics:
    """By task, means over all questions; gain: nats that the memory adds to the answer's.

    The error is over texts: questions of one text are not independent. `_full`: of the texts that
    were short enough, if any.
    """
    return {task: _of_task(rows) for task, rows in table.groupby("task", sort=False)}


def _of_task(table: pd.DataFrame) -> Metrics:
    names = [f"{name}{suffix}" for suffix in ("", "_off", "_full") for name in FIGURES]
    known = [name for name in names if name in table and table[name].notna().any()]
    gain = (table["log_prob"] - table["log_prob_off"]).groupby(table["text"]).mean()
    error = gain.sem() if len(gain) > 1 else None
    means = {name: Estimate(table[name].mean()) for name in known}
    return with_errors(**means, gain=Estimate(gain.mean(), error))
