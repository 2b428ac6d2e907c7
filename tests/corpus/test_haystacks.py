"""Facts told and asked for: what the texts say, where, and that a seed decides it."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.haystacks import WORDS, Facts, insert, questioned, with_needles
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from toy import sentence, some_pieces

APART = 40
TOLD = re.compile(r" The code of (\w+) is (\d{5})\.")
ASKED = re.compile(r" What is the code of (\w+)\? The code of (\w+) is (\d{5})\.")


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def facts(tokenizer: Tokenizer) -> Facts:
    return Facts(tokenizer)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_facts_in_words(facts: Facts, tokenizer: Tokenizer) -> None:
    told, asked, answer = map(tokenizer.decode, facts.pass_key(generator()))
    assert re.fullmatch(r" \d{5}", answer)
    assert told == f" The pass key is{answer}. Remember it.{answer} is the pass key."
    assert asked == " What is the pass key? The pass key is"
    codes = facts.codes(len(WORDS), generator())
    words = set()
    for told, asked, answer in (map(tokenizer.decode, fact) for fact in codes):
        word = asked.removesuffix(" is").rpartition(" ")[2]
        assert (told, asked) == (
            f" The code of {word} is{answer}.",
            f" What is the code of {word}? The code of {word} is",
        )
        words.add(word)
    assert words == set(WORDS)


def test_parts_are_inserted_in_order() -> None:
    filler, parts = torch.arange(5), [(5, [10]), (2, [11, 12]), (0, [13]), (2, [14])]
    whole, starts = insert(filler, [(place, torch.tensor(part)) for place, part in parts])
    assert whole.tolist() == [13, 0, 1, 11, 12, 14, 2, 3, 4, 10]
    assert starts == [9, 3, 0, 5]


def text(tokenizer: Tokenizer, length: int) -> torch.Tensor:
    ids = tokenizer(sentence(2 * length, 0), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:length])


@pytest.mark.parametrize("seed", range(12))
def test_every_fact_is_told_once_and_asked_for_further_on(
    facts: Facts, tokenizer: Tokenizer, seed: int
) -> None:
    filler = text(tokenizer, 1500)
    tokens = questioned(filler, facts, APART, generator(seed))
    assert len(tokens) == len(filler)
    written = tokenizer.decode(tokens)
    asked = {match[1]: match for match in ASKED.finditer(written)}
    assert all(match[1] == match[2] for match in asked.values())
    told = {match[1]: match for match in TOLD.finditer(ASKED.sub("", written))}
    keys = re.findall(r"(?<!\? The pass key is) (\d{5}) is the pass key", written)
    assert told.keys() == asked.keys()
    assert 1 <= len(told) + len(keys) <= 1500 // 128
    for word, match in asked.items():
        assert told[word][2] == match[3]
        first = written.index(told[word][0])
        between = written[first + len(told[word][0]) : match.start()]
        assert len(tokenizer(between, add_special_tokens=False)["input_ids"]) >= APART
    if keys:
        assert written.index("is the pass key.") < written.index("What is the pass key?")
        assert f"What is the pass key? The pass key is {keys[0]}." in written
    # Without what was put in, it is the text's start.
    rest = TOLD.sub("", ASKED.sub("", written))
    rest = re.sub(r" What is the pass key\? The pass key is \d{5}\.", "", rest)
    rest = re.sub(r" The pass key is \d{5}\. Remember it\. \d{5} is the pass key\.", "", rest)
    assert tokenizer.decode(filler).startswith(rest)


def test_distances_are_near_and_far(facts: Facts, tokenizer: Tokenizer) -> None:
    filler, distances = text(tokenizer, 1500), []
    for seed in range(60):
        written = tokenizer.decode(questioned(filler, facts, APART, generator(seed)))
        for match in ASKED.finditer(written):
            told = f" The code of {match[1]} is {match[3]}."
            between = written[written.index(told) + len(told) : match.start()]
            distances.append(len(tokenizer(between, add_special_tokens=False)["input_ids"]))
    assert min(distances) < 2 * APART
    assert max(distances) > 1000
    middle = torch.tensor(distances).median()
    assert 2 * APART < middle < 750


def changed(one: Pieces, other: Pieces) -> list[int]:
    return torch.where((one.tokens != other.tokens).any(1))[0].tolist()


def test_a_share_of_the_documents_is_replaced(tokenizer: Tokenizer) -> None:
    pieces = some_pieces([300, 280, 300, 260], 300)
    kept = pieces.tokens.clone()
    found = with_needles(pieces, tokenizer, 0.5, 3, APART)
    assert torch.equal(pieces.tokens, kept)  # a copy
    assert len(changed(found, pieces)) == 2
    assert torch.equal(found.mask, pieces.mask)
    assert not found.tokens[~found.mask].any()
    again = with_needles(pieces, tokenizer, 0.5, 3, APART)
    assert torch.equal(again.tokens, found.tokens)
    assert changed(with_needles(pieces, tokenizer, 0.5, 4, APART), found)
    assert not changed(with_needles(pieces, tokenizer, 0.0, 3, APART), pieces)
    assert len(changed(with_needles(pieces, tokenizer, 1.0, 3, APART), pieces)) == 4


def test_a_small_share_is_right_over_epochs(tokenizer: Tokenizer) -> None:
    pieces = some_pieces([200] * 4, 200)
    counts = [
        len(changed(with_needles(pieces, tokenizer, 0.1, seed, APART), pieces))
        for seed in range(200)
    ]
    assert set(counts) == {0, 1}
    assert 0.3 < sum(counts) / len(counts) < 0.5


def test_a_document_that_holds_no_question_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="a document of 300 tokens does not hold a fact and, 290"):
        with_needles(some_pieces([300], 300), tokenizer, 1.0, 0, 290)
