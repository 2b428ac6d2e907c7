"""Synthetic retrieval questions: facts hidden in a text and asked for further on.

A fact is a pass key (Infini-attention, arXiv 2404.07143, section 4.3, after Mohtashami & Jaggi,
arXiv 2305.16300) or the code of a word (recall of one pair among several, as in Zoology, arXiv
2312.04927). An evaluation asks at the end of a text, a training document all along.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError

DIGITS = 5  # of a pass key and of a code
TOKENS_PER_FACT = 128  # of a training document, at least
CHECKED_PASS_KEYS = 64  # draws that stand for all numbers
CODE_WORDS = (
    "acorn", "anchor", "apple", "arrow", "badger", "barrel", "basket", "beacon", "bell", "bottle",
    "bridge", "button", "candle", "canyon", "carpet", "castle", "cherry", "clock", "clover",
    "copper", "cotton", "cradle", "crystal", "desert", "dragon", "eagle", "engine", "falcon",
    "feather", "forest", "garden", "ginger", "glacier", "hammer", "harbor", "helmet", "honey",
    "island", "ivory", "jacket", "jungle", "kettle", "ladder", "lantern", "lemon", "marble",
    "meadow", "mirror", "needle", "orchard", "otter", "palace", "pepper", "pillow", "planet",
    "rabbit", "ribbon", "saddle", "shadow", "silver", "spider", "temple", "tunnel", "violin",
)  # fmt: skip


class Fact(NamedTuple):
    """A statement, the question about it and the answer, as tokens: (n,) each."""

    statement: Tensor  # the sentences to hide
    question: Tensor  # the question, and the words that lead to the answer
    answer: Tensor

    @property
    def size(self) -> int:
        """Number of tokens of all three."""
        return sum(map(len, self))


class FactSampler:
    """Facts drawn at random, in the tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.stop = self._ids(".")  # ends an answer that is not the last

    def _ids(self, text: str) -> Tensor:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids)

    def _number(self, generator: Generator) -> Tensor:
        number = torch.randint(10 ** (DIGITS - 1), 10**DIGITS, (1,), generator=generator)
        return self._ids(f" {int(number)}")

    def pass_key(self, generator: Generator) -> Fact:
        """Draw a pass key; its statement says it twice."""
        key, lead = self._number(generator), self._ids(" The pass key is")
        parts = [lead, key, self._ids(". Remember it."), key, self._ids(" is the pass key.")]
        return Fact(torch.cat(parts), torch.cat([self._ids(" What is the pass key?"), lead]), key)

    def codes(self, count: int, generator: Generator) -> list[Fact]:
        """Draw the codes of `count` different words, at most those of `CODE_WORDS`."""
        facts = []
        for index in torch.randperm(len(CODE_WORDS), generator=generator)[:count].tolist():
            word, code = CODE_WORDS[index], self._number(generator)
            lead = self._ids(f" The code of {word} is")
            question = torch.cat([self._ids(f" What is the code of {word}?"), lead])
            facts.append(Fact(torch.cat([lead, code, self.stop]), question, code))
        return facts


def insert_parts(filler: Tensor, parts: list[tuple[int, Tensor]]) -> tuple[Tensor, list[int]]:
    """Insert parts into a text.

    Args:
        filler: tokens of the text, (n,).
        parts: index of the token that the part goes before, and the part; those of one index keep
            their order.

    Returns:
        The text with all parts, and the index at which each part starts in it.
    """
    pieces, starts, at, inserted = list[Tensor](), [0] * len(parts), 0, 0
    for number in sorted(range(len(parts)), key=lambda i: parts[i][0]):
        index, part = parts[number]
        starts[number] = index + inserted
        pieces += [filler[at:index], part]
        at, inserted = index, inserted + len(part)
    return torch.cat([*pieces, filler[at:]]), starts


def check_document_length(length: int, sampler: FactSampler, min_distance: int) -> None:
    """Raise InputError if `with_questions` may find no room in a document of `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    pass_keys = [sampler.pass_key(generator) for _ in range(CHECKED_PASS_KEYS)]
    codes = sampler.codes(len(CODE_WORDS), generator)
    needed = min(max(fact.size for fact in facts) for facts in (pass_keys, codes))
    if needed + len(sampler.stop) > _room_for_facts(length, min_distance):
        raise _too_short(length, min_distance)


def _room_for_facts(length: int, min_distance: int) -> int:
    """Return the tokens that facts and questions may take of a document of `length` tokens."""
    return min(length - min_distance, length // 2)


def _too_short(length: int, min_distance: int) -> InputError:
    return InputError(
        f"question_share: a document of {length} tokens is too short for a fact and, "
        f"{min_distance} tokens later, its question; raise length, or lower the window"
    )


def with_questions(
    text: Tensor, sampler: FactSampler, min_distance: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Hide facts in a text and ask for each further on; the length stays.

    There is at most one fact per `TOKENS_PER_FACT` tokens, and half of the text stays at least. A
    statement is at a uniform position, its question at a log-uniform distance.

    Args:
        text: tokens of a document, (n,); its first ones remain.
        sampler: draws the facts.
        min_distance: tokens between a statement and its question, at least.
        generator: decides everything random.

    Returns:
        The new text, (n,), and a mask of the answers' tokens, (n,) bool.

    Raises:
        InputError: the text is too short for one fact.
    """
    most = min(max(1, len(text) // TOKENS_PER_FACT), len(CODE_WORDS))
    wanted = int(torch.randint(1, most + 1, (1,), generator=generator))
    drawn = [sampler.pass_key(generator), *sampler.codes(wanted, generator)]
    order = torch.randperm(len(drawn), generator=generator).tolist()
    chosen, left = list[Fact](), _room_for_facts(len(text), min_distance)
    for fact in (drawn[i] for i in order):
        size = fact.size + len(sampler.stop)
        if len(chosen) < wanted and size <= left:
            chosen.append(fact)
            left -= size
    if not chosen:
        raise _too_short(len(text), min_distance)
    room = len(text) - sum(fact.size + len(sampler.stop) for fact in chosen)
    parts = list[tuple[int, Tensor]]()
    for fact in chosen:
        index = int(torch.randint(room - min_distance + 1, (1,), generator=generator))
        exponent = torch.rand((), generator=generator).item()
        distance = round(min_distance * ((room - index) / min_distance) ** exponent)
        question = torch.cat([fact.question, fact.answer, sampler.stop])
        parts += [(index, fact.statement), (index + distance, question)]
    tokens, starts = insert_parts(text[:room], parts)
    answers = torch.zeros(len(tokens), dtype=torch.bool)
    for fact, start in zip(chosen, starts[1::2], strict=True):
        answers[start + len(fact.question) :][: len(fact.answer)] = True
    return tokens, answers
