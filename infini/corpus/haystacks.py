"""Facts hidden in a text and asked for: a pass key, or the codes of words.

The pass key is that of Infini-attention's § 4.3 (arXiv 2404.07143) after Mohtashami & Jaggi (arXiv
2305.16300). Codes are recall of one pair among several (Zoology's, arXiv 2312.04927), in words.
An evaluation asks at a test text's end, a document for training all along.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError

DIGITS = 5  # of a number to be remembered
SPACING = 128  # tokens of a training document to a fact, at the fewest
WORDS = (
    "acorn", "anchor", "apple", "arrow", "badger", "barrel", "basket", "beacon", "bell", "bottle",
    "bridge", "button", "candle", "canyon", "carpet", "castle", "cherry", "clock", "clover",
    "copper", "cotton", "cradle", "crystal", "desert", "dragon", "eagle", "engine", "falcon",
    "feather", "forest", "garden", "ginger", "glacier", "hammer", "harbor", "helmet", "honey",
    "island", "ivory", "jacket", "jungle", "kettle", "ladder", "lantern", "lemon", "marble",
    "meadow", "mirror", "needle", "orchard", "otter", "palace", "pepper", "pillow", "planet",
    "rabbit", "ribbon", "saddle", "shadow", "silver", "spider", "temple", "tunnel", "violin",
)  # fmt: skip


class Fact(NamedTuple):
    """In tokens: (n,) each."""

    told: Tensor  # the sentences to be hidden
    asked: Tensor  # the question, and what leads to the answer
    answer: Tensor

    @property
    def size(self) -> int:
        """Of all three."""
        return sum(map(len, self))


class Facts:
    """Facts drawn at random, in a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.stop = self._ids(".")  # what ends an answer that is not the last

    def _ids(self, text: str) -> Tensor:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids)

    def _number(self, generator: Generator) -> Tensor:
        number = torch.randint(10 ** (DIGITS - 1), 10**DIGITS, (1,), generator=generator)
        return self._ids(f" {int(number)}")

    def pass_key(self, generator: Generator) -> Fact:
        """The key, twice, after Mohtashami & Jaggi."""
        key, lead = self._number(generator), self._ids(" The pass key is")
        parts = [lead, key, self._ids(". Remember it."), key, self._ids(" is the pass key.")]
        return Fact(torch.cat(parts), torch.cat([self._ids(" What is the pass key?"), lead]), key)

    def codes(self, count: int, generator: Generator) -> list[Fact]:
        """The codes of so many words, at most `WORDS`, none twice."""
        facts = []
        for index in torch.randperm(len(WORDS), generator=generator)[:count].tolist():
            word, code = WORDS[index], self._number(generator)
            lead = self._ids(f" The code of {word} is")
            asked = torch.cat([self._ids(f" What is the code of {word}?"), lead])
            facts.append(Fact(torch.cat([lead, code, self.stop]), asked, code))
        return facts


def insert(filler: Tensor, parts: list[tuple[int, Tensor]]) -> tuple[Tensor, list[int]]:
    """The filler with every part before its token of that number; where each part then starts.

    Parts of one place keep their order.
    """
    pieces, starts, at, inserted = list[Tensor](), [0] * len(parts), 0, 0
    for index in sorted(range(len(parts)), key=lambda i: parts[i][0]):
        place, part = parts[index]
        starts[index] = place + inserted
        pieces += [filler[at:place], part]
        at, inserted = place, inserted + len(part)
    return torch.cat([*pieces, filler[at:]]), starts


def questioned(
    text: Tensor, facts: Facts, apart: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """As many tokens: the text's first, in them facts and further on a question about each.

    Up to a fact for every `SPACING` tokens, half of the text at most; each at any place, its
    question `apart` tokens later or more, near distances as likely as far ones (log-uniform).
    Returns them, and which of them are answers. InputError: the text is too short.
    """
    most = min(max(1, len(text) // SPACING), len(WORDS))
    wanted = int(torch.randint(1, most + 1, (1,), generator=generator))
    drawn = [facts.pass_key(generator), *facts.codes(wanted, generator)]
    order = torch.randperm(len(drawn), generator=generator).tolist()
    chosen, left = list[Fact](), min(len(text) - apart, len(text) // 2)
    for fact in (drawn[i] for i in order):
        size = fact.size + len(facts.stop)
        if len(chosen) < wanted and size <= left:
            chosen.append(fact)
            left -= size
    if not chosen:
        raise InputError(
            f"question_share: a document of {len(text)} tokens does not hold a fact and, {apart} tokens "
            "later, its question; raise length, or lower the window"
        )
    room = len(text) - sum(fact.size + len(facts.stop) for fact in chosen)
    parts = list[tuple[int, Tensor]]()
    for fact in chosen:
        place = int(torch.randint(room - apart + 1, (1,), generator=generator))
        farther = torch.rand((), generator=generator).item()
        distance = round(apart * ((room - place) / apart) ** farther)
        question = torch.cat([fact.asked, fact.answer, facts.stop])
        parts += [(place, fact.told), (place + distance, question)]
    tokens, starts = insert(text[:room], parts)
    answers = torch.zeros(len(tokens), dtype=torch.bool)
    for fact, start in zip(chosen, starts[1::2], strict=True):
        answers[start + len(fact.asked) :][: len(fact.answer)] = True
    return tokens, answers
