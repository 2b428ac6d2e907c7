"""Synthetic retrieval questions: wording, positions, and determinism."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.haystacks import CODE_WORDS, FactSampler, insert_parts, with_questions
from infini.errors import InputError
from toy import sentence

MIN_DISTANCE = 40
STATEMENT = re.compile(r" The code of (\w+) is (\d{5})\.")
QUESTION = re.compile(r" What is the code of (\w+)\? The code of (\w+) is (\d{5})\.")


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def sampler(tokenizer: Tokenizer) -> FactSampler:
    return FactSampler(tokenizer)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_facts_in_words(sampler: FactSampler, tokenizer: Tokenizer) -> None:
    statement, question, answer = map(tokenizer.decode, sampler.pass_key(generator()))
    assert re.fullmatch(r" \d{5}", answer)
    assert statement == f" The pass key is{answer}. Remember it.{answer} is the pass key."
    assert question == " What is the pass key? The pass key is"
    codes = sampler.codes(len(CODE_WORDS), generator())
    words = set()
    for statement, question, answer in (map(tokenizer.decode, fact) for fact in codes):
        word = question.removesuffix(" is").rpartition(" ")[2]
        assert (statement, question) == (
            f" The code of {word} is{answer}.",
            f" What is the code of {word}? The code of {word} is",
        )
        words.add(word)
    assert words == set(CODE_WORDS)


def test_insert_parts_keeps_order() -> None:
    filler, parts = torch.arange(5), [(5, [10]), (2, [11, 12]), (0, [13]), (2, [14])]
    whole, starts = insert_parts(filler, [(place, torch.tensor(part)) for place, part in parts])
    assert whole.tolist() == [13, 0, 1, 11, 12, 14, 2, 3, 4, 10]
    assert starts == [9, 3, 0, 5]


def text(tokenizer: Tokenizer, length: int) -> torch.Tensor:
    ids = tokenizer(sentence(2 * length, 0), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:length])


@pytest.mark.parametrize("seed", range(12))
def test_with_questions_asks_for_every_fact_further_on(
    sampler: FactSampler, tokenizer: Tokenizer, seed: int
) -> None:
    filler = text(tokenizer, 1500)
    tokens, _ = with_questions(filler, sampler, MIN_DISTANCE, generator(seed))
    assert len(tokens) == len(filler)
    written = tokenizer.decode(tokens)
    questions = {match[1]: match for match in QUESTION.finditer(written)}
    assert all(match[1] == match[2] for match in questions.values())
    statements = {match[1]: match for match in STATEMENT.finditer(QUESTION.sub("", written))}
    keys = re.findall(r"(?<!\? The pass key is) (\d{5}) is the pass key", written)
    assert statements.keys() == questions.keys()
    assert 1 <= len(statements) + len(keys) <= 1500 // 128
    for word, match in questions.items():
        assert statements[word][2] == match[3]
        first = written.index(statements[word][0])
        between = written[first + len(statements[word][0]) : match.start()]
        assert len(tokenizer(between, add_special_tokens=False)["input_ids"]) >= MIN_DISTANCE
    if keys:
        assert written.index("is the pass key.") < written.index("What is the pass key?")
        assert f"What is the pass key? The pass key is {keys[0]}." in written
    # Without what was put in, it is the text's start.
    rest = STATEMENT.sub("", QUESTION.sub("", written))
    rest = re.sub(r" What is the pass key\? The pass key is \d{5}\.", "", rest)
    rest = re.sub(r" The pass key is \d{5}\. Remember it\. \d{5} is the pass key\.", "", rest)
    assert tokenizer.decode(filler).startswith(rest)


def test_with_questions_distances_are_log_uniform(
    sampler: FactSampler, tokenizer: Tokenizer
) -> None:
    filler, distances = text(tokenizer, 1500), []
    for seed in range(60):
        written = tokenizer.decode(
            with_questions(filler, sampler, MIN_DISTANCE, generator(seed))[0]
        )
        for match in QUESTION.finditer(written):
            statements = f" The code of {match[1]} is {match[3]}."
            between = written[written.index(statements) + len(statements) : match.start()]
            distances.append(len(tokenizer(between, add_special_tokens=False)["input_ids"]))
    assert min(distances) < 2 * MIN_DISTANCE
    assert max(distances) > 1000
    middle = torch.tensor(distances).median()
    assert 2 * MIN_DISTANCE < middle < 750


@pytest.mark.parametrize("seed", range(12))
def test_with_questions_marks_answers(
    sampler: FactSampler, tokenizer: Tokenizer, seed: int
) -> None:
    tokens, answers = with_questions(text(tokenizer, 1500), sampler, MIN_DISTANCE, generator(seed))
    assert (answers.dtype, answers.shape) == (torch.bool, tokens.shape)
    questions = re.findall(
        r"\? The (?:pass key|code of \w+) is( \d{5})\.", tokenizer.decode(tokens)
    )
    assert tokenizer.decode(tokens[answers]) == "".join(questions)
    first = answers & ~answers.roll(1)
    assert int(first.sum()) == len(questions)
    for place in torch.where(first)[0].tolist():  # digits alike are statements elsewhere too
        lead = tokenizer.decode(tokens[:place])
        assert re.search(r"\? The (pass key|code of \w+) is$", lead)


def test_with_questions_depends_on_generator_only(
    sampler: FactSampler, tokenizer: Tokenizer
) -> None:
    filler = text(tokenizer, 600)
    before = filler.clone()
    found = [with_questions(filler, sampler, MIN_DISTANCE, generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(filler, before)
    for one, other in zip(*found[:2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*found[1:], strict=True):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("length", "min_distance"), [(300, 290), (60, 5)])
def test_with_questions_rejects_short_document(
    sampler: FactSampler, tokenizer: Tokenizer, length: int, min_distance: int
) -> None:
    expected = f"^question_share: a document of {length} tokens is too short for a fact"
    with pytest.raises(InputError, match=expected):
        with_questions(text(tokenizer, length), sampler, min_distance, generator())
