"""Facts told and asked for: what the texts say, where, and that a seed decides it."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.haystacks import WORDS, Facts, insert, questioned
from infini.errors import InputError
from toy import sentence

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
    tokens, _ = questioned(filler, facts, APART, generator(seed))
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
        written = tokenizer.decode(questioned(filler, facts, APART, generator(seed))[0])
        for match in ASKED.finditer(written):
            told = f" The code of {match[1]} is {match[3]}."
            between = written[written.index(told) + len(told) : match.start()]
            distances.append(len(tokenizer(between, add_special_tokens=False)["input_ids"]))
    assert min(distances) < 2 * APART
    assert max(distances) > 1000
    middle = torch.tensor(distances).median()
    assert 2 * APART < middle < 750


@pytest.mark.parametrize("seed", range(12))
def test_the_answers_are_told_apart(facts: Facts, tokenizer: Tokenizer, seed: int) -> None:
    tokens, answers = questioned(text(tokenizer, 1500), facts, APART, generator(seed))
    assert (answers.dtype, answers.shape) == (torch.bool, tokens.shape)
    asked = re.findall(r"\? The (?:pass key|code of \w+) is( \d{5})\.", tokenizer.decode(tokens))
    assert tokenizer.decode(tokens[answers]) == "".join(asked)
    first = answers & ~answers.roll(1)
    assert int(first.sum()) == len(asked)
    for place in torch.where(first)[0].tolist():  # digits alike are told elsewhere too
        lead = tokenizer.decode(tokens[:place])
        assert re.search(r"\? The (pass key|code of \w+) is$", lead)


def test_they_are_a_function_of_the_generator(facts: Facts, tokenizer: Tokenizer) -> None:
    filler = text(tokenizer, 600)
    kept = filler.clone()
    found = [questioned(filler, facts, APART, generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(filler, kept), "a copy"
    for one, other in zip(*found[:2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*found[1:], strict=True):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("length", "apart"), [(300, 290), (60, 5)])
def test_a_document_that_holds_no_question_is_named(
    facts: Facts, tokenizer: Tokenizer, length: int, apart: int
) -> None:
    wanted = f"^question_share: a document of {length} tokens does not hold a fact and, {apart} tokens"
    with pytest.raises(InputError, match=wanted):
        questioned(text(tokenizer, length), facts, apart, generator())
