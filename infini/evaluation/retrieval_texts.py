"""Texts with hidden facts and questions at their end (`infini.corpus.haystacks`), without a model.

Two tasks: passkey, a number at a chosen depth; recall, the codes of several words anywhere before
the last segment, with questions about some. Filler is drawn from test documents.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.haystacks import Fact, FactSampler, insert_parts
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import PasskeyProtocol, RecallProtocol


class Question(NamedTuple):
    """Question about a fact in a text."""

    start: int  # index of the answer's first token
    length: int  # tokens of the answer
    depth: float  # of the fact: 0 the start, 1 right before the questions
    distance: int  # tokens from the fact's end to the answer


class RetrievalText(NamedTuple):
    """Text with hidden facts, and questions at its end."""

    task: str  # "passkey" or "recall"
    segments: int
    pairs: int  # number of facts
    sample: int
    tokens: Tensor  # (segments · L,)
    questions: list[Question]


class Haystacks:
    """Retrieval texts of all tasks.

    Args:
        tokenizer: The base's.
        documents: Test documents, which filler is drawn from.
        segment_length: Tokens per segment.
        passkey: Section `evaluate.passkey`.
        recall: Section `evaluate.recall`; None: no such task.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        documents: Pieces,
        segment_length: int,
        passkey: PasskeyProtocol,
        recall: RecallProtocol | None = None,
    ):
        self.facts, self.length = FactSampler(tokenizer), segment_length
        self.passkey, self.recall = passkey, recall
        self.filler = documents.tokens[documents.mask]  # of all documents, concatenated

    def texts(self) -> Iterator[RetrievalText]:
        """Yield all texts by task, then by length or by number of facts."""
        p, r = self.passkey, self.recall
        for segments in p.lengths:
            for depth in p.depths:
                yield from (self.passkey_text(segments, depth, s) for s in range(p.samples))
        if r is not None:
            for pairs in r.pairs:
                yield from (self.recall_text(r, pairs, sample) for sample in range(r.samples))

    def passkey_text(self, segments: int, depth: float, sample: int) -> RetrievalText:
        """Return a text with a pass key at `depth`."""
        seed = 1000 * sample + 10 * segments + int(10 * depth)
        fact = self.facts.pass_key(torch.Generator().manual_seed(seed))
        room = self._room("passkey.lengths", segments, [fact], [fact])
        tokens, questions = self._text(room, sample, [(depth, fact)], [fact])
        return RetrievalText("passkey", segments, 1, sample, tokens, questions)

    def recall_text(self, recall: RecallProtocol, pairs: int, sample: int) -> RetrievalText:
        """Return a text with codes before its last segment, and questions about the first ones."""
        generator = torch.Generator().manual_seed(1000 * sample + pairs)
        facts = self.facts.codes(pairs, generator)
        asked_facts = facts[: recall.questions]
        room = self._room("recall.pairs", recall.segments, facts, asked_facts)
        ahead = (recall.segments - 1) * self.length - sum(len(fact.statement) for fact in facts)
        if ahead < 0:
            raise InputError(
                f"params.yaml: evaluate.recall.pairs: {pairs} facts take "
                f"{(recall.segments - 1) * self.length - ahead} tokens, the segments before the "
                f"last hold {(recall.segments - 1) * self.length}: ask for fewer"
            )
        positions = torch.randint(min(ahead, room) + 1, (pairs,), generator=generator).tolist()
        hidden = [(at / max(1, room), fact) for at, fact in zip(positions, facts, strict=True)]
        tokens, questions = self._text(room, sample, hidden, asked_facts)
        return RetrievalText("recall", recall.segments, pairs, sample, tokens, questions)

    def _room(self, key: str, segments: int, hidden: list[Fact], asked_facts: list[Fact]) -> int:
        """Return the tokens of filler in so many segments; InputError if facts are too long."""
        questions = [len(fact.question) + len(fact.answer) for fact in asked_facts]
        stops = (len(asked_facts) - 1) * len(self.facts.stop)
        room = (
            segments * self.length - sum(len(f.statement) for f in hidden) - sum(questions) - stops
        )
        if room < 0:
            raise InputError(
                f"params.yaml: evaluate.{key}: facts and questions take "
                f"{segments * self.length - room} tokens, {segments} segments hold "
                f"{segments * self.length}: ask for more segments"
            )
        if (answers := sum(questions) + stops - len(asked_facts[0].question) + 1) > self.length:
            raise InputError(
                f"params.yaml: evaluate.{key.partition('.')[0]}: the answers take {answers} "
                f"tokens, the last segment holds {self.length}: ask for fewer"
            )
        return room

    def _text(
        self, room: int, sample: int, hidden: list[tuple[float, Fact]], asked_facts: list[Fact]
    ) -> tuple[Tensor, list[Question]]:
        """Put facts at their depths into filler, and questions about the first ones at its end."""
        # Samples start at different tokens; a short corpus repeats.
        at = (sample * room + torch.arange(room)) % len(self.filler)
        stop = self.facts.stop
        endings = [torch.cat([f.question, f.answer, stop]) for f in asked_facts]
        endings[-1] = endings[-1][: -len(stop)]  # the text ends with an answer
        parts = [(round(depth * room), fact.statement) for depth, fact in hidden]
        tokens, starts = insert_parts(
            self.filler[at], [*parts, *((room, ending) for ending in endings)]
        )
        questions, n = [], len(asked_facts)
        for (depth, fact), fact_at, question_at in zip(
            hidden[:n], starts[:n], starts[-n:], strict=True
        ):
            start = question_at + len(fact.question)
            distance = start - fact_at - len(fact.statement)
            questions.append(Question(start, len(fact.answer), depth, distance))
        return tokens, questions


def check_text_lengths(
    tokenizer: Tokenizer,
    segment_length: int,
    passkey: PasskeyProtocol,
    recall: RecallProtocol | None,
) -> None:
    """Raise InputError if facts and questions of a retrieval text do not fit its segments.

    Args:
        tokenizer: The base's.
        segment_length: Tokens per segment.
        passkey: Section `evaluate.passkey`.
        recall: Section `evaluate.recall`; None: no such task.
    """
    filler = torch.zeros(1, 1, dtype=torch.int64)
    document = Pieces(filler, filler == 0, filler[0], filler[0])
    for _ in Haystacks(tokenizer, document, segment_length, passkey, recall).texts():
        pass
