"""Retrieval tasks: every answer is read back from its text by a reader that knows only the text."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.ruler import (
    ADJECTIVES,
    NOISE,
    NOUNS,
    RULER_TASKS,
    RulerText,
    ruler_text,
    ruler_texts,
)
from infini.errors import InputError

LENGTHS = (3000, 6000)  # the toy tokenizer has about a token per letter
NIAH = [task for task in RULER_TASKS if task.startswith("niah")]
RECORDS = [task for task in RULER_TASKS if task.startswith("records")]
NEEDLE = r"^One of the special magic (?:number|uuid)s for (\S+) is: (\S+)\.$"
RECORD = r"^(\S+): (\d{7})$"
ASKED = r"What is the (?:special magic \w+ for|value of) (\S+) (?:mentioned )?in the \w+ above\?"
# Tokens of a line, or of a few words where counts are rounded
UNIT = 150


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[RulerText]:
    return list(ruler_texts(tokenizer, lengths=LENGTHS, samples=3))


def texts_of(task: str, texts: list[RulerText]) -> list[RulerText]:
    return [text for text in texts if text.task == task]


def test_ruler_texts_are_in_order_by_task_and_length(texts: list[RulerText]) -> None:
    wanted = [(task, length, i) for task in RULER_TASKS for length in LENGTHS for i in range(3)]
    assert [text[:3] for text in texts] == wanted
    assert len({text.context for text in texts}) == len(texts)


@pytest.mark.parametrize("task", [*NIAH, *RECORDS])
def test_answer_is_the_value_of_the_one_line_asked_for(task: str, texts: list[RulerText]) -> None:
    for text in texts_of(task, texts):
        lines = text.context.split("\n")[1:]
        found = re.findall(NEEDLE if task in NIAH else RECORD, "\n".join(lines), re.MULTILINE)
        values = dict(found)
        assert len(found) == len(values) == len(set(values.values()))
        (key,) = re.findall(ASKED, text.question)
        assert text.answer == f" {values[key]}"
        assert text.context.count(values[key]) == 1
        assert values[key] not in text.question
        place = "in the records" if task in RECORDS else "mentioned in the text"
        assert text.question.endswith(f"{key} {place} above is")
        index = next(i for i, line in enumerate(lines) if values[key] in line)
        assert text.depth == index / (len(lines) - 1)
        if task == "niah_single_1":
            assert Counter(lines) == {NOISE: len(lines) - 1, lines[index]: 1}
            assert re.fullmatch(r"[a-z]+-[a-z]+ \d{7}", f"{key}{text.answer}")
        else:
            assert len(found) == len(lines)  # the haystack is needles
        if task == "niah_multikey_3":
            uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
            assert all(re.fullmatch(uuid, x) for pair in found for x in pair)
        if task in RECORDS:
            assert text.depth == {"records_last": 1.0, "records_first": 0.0}[task]


def test_depths_of_needles_differ(texts: list[RulerText]) -> None:
    for task in NIAH:
        assert len({text.depth for text in texts_of(task, texts)}) > 2


def test_answer_of_variable_tracking_is_the_whole_chain(texts: list[RulerText]) -> None:
    at = list[float]()
    for text in texts_of("vt", texts):
        values = dict[str, str]()
        for name, source in re.findall(r"^VAR ([A-Z]{5}) = (.+)$", text.context, re.MULTILINE):
            values[name] = values[source[4:]] if source.startswith("VAR ") else source
        (asked,) = re.findall(r"assigned the value (\d{5}) in the text", text.question)
        assert text.answer == " " + ", ".join(n for n, value in values.items() if value == asked)
        assert len(values) == 5
        lines = text.context.split("\n")[1:]
        assert {line for line in lines if not line.startswith("VAR")} == {NOISE}
        at += [i / len(lines) for i, line in enumerate(lines) if line.startswith("VAR")]
        assert text.context.count(asked) == 1
        assert (text.depth, text.distance) == (None, None)
    assert min(at) < 0.2
    assert max(at) > 0.8


def test_answer_of_common_words_is_the_ten_most_frequent(texts: list[RulerText]) -> None:
    frequencies = set()
    for text in texts_of("cwe", texts):
        listed = re.findall(r"(\d+)\. (\w+)", text.context)
        assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
        counts = Counter(word for _, word in listed)
        common = counts.most_common(10)
        assert {count for _, count in counts.most_common()[10:]} == {3}
        assert len({count for _, count in common}) == 1
        frequencies.add(common[0][1])
        assert common[0][1] > 3
        in_order = sorted((word for word, _ in common), key=[w for _, w in listed].index)
        assert text.answer == " " + ", ".join(in_order)
    assert len(frequencies) == 2  # a longer text has more of each
    assert len(set(ADJECTIVES + NOUNS)) == len(ADJECTIVES + NOUNS)


def test_common_words_appear_thirty_times_at_most(tokenizer: Tokenizer) -> None:
    text = ruler_text(tokenizer, "cwe", 9000)
    counts = Counter(re.findall(r"\d+\. (\w+)", text.context))
    assert sorted(set(counts.values())) == [3, 30]


def test_answer_of_frequent_words_is_in_order_of_frequency(texts: list[RulerText]) -> None:
    for text in texts_of("fwe", texts):
        counts = Counter(text.context.split("\n")[1].split(" ")).most_common()
        assert counts[0][0] == "..."
        assert text.answer == " " + ", ".join(word for word, _ in counts[1:4])
        assert len({count for _, count in counts[:5]}) == 5  # no tie
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in counts[1:])
        share = counts[0][1] / counts[1][1]
        assert 3.9 < share < 4.2  # 1 / k²


def test_tokens_are_the_parts_and_fit(texts: list[RulerText], tokenizer: Tokenizer) -> None:
    for text in texts:
        parts = (text.context, text.question, text.answer)
        for part, tokens in zip(parts, text.tokens, strict=True):
            assert tokenizer.decode(tokens) == part
            assert tokens.dtype == torch.int64
        assert text.length - UNIT < sum(map(len, text.tokens)) <= text.length


def test_distance_is_from_the_line_to_the_answer(
    texts: list[RulerText], tokenizer: Tokenizer
) -> None:
    for text in (text for text in texts if text.task in [*NIAH, *RECORDS]):
        read = torch.cat(text.tokens[:2])
        assert text.distance is not None
        ends = tokenizer.decode(read[: len(read) - text.distance])
        assert ends.removesuffix(".").endswith(text.answer)
        assert text.context.startswith(ends)


def test_ruler_text_is_determined_by_seed_task_length_and_sample(tokenizer: Tokenizer) -> None:
    for task in RULER_TASKS:
        text, again = (ruler_text(tokenizer, task, 3000, 1, seed=5) for _ in range(2))
        assert text[:-1] == again[:-1]
        others = [
            ruler_text(tokenizer, task, 3000, sample=2, seed=5),
            ruler_text(tokenizer, task, 3000, sample=1, seed=6),
        ]
        assert len({(text.context, text.answer) for text in (text, *others)}) == 3


def test_ruler_text_counts_the_tokenizers_beginning_of_text(base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    text = ruler_text(tokenizer, "niah_single_1", 1000)
    full = sum(map(len, text.tokens))  # no room for one more token
    encode = tokenizer.encode
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.encode = lambda text: [7, *encode(text)]
    begun = ruler_text(tokenizer, "niah_single_1", full)
    assert begun.tokens.context[0] == 7
    assert tokenizer.decode(begun.tokens.context[1:]) == begun.context
    assert sum(map(len, begun.tokens)) <= full


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("niah", 3000, r"tasks must be among niah_single_1, .*, got niah$"),
        ("vt", 100, r"lengths must be ≥ \d+ tokens for vt, got 100"),
        ("cwe", 900, r"lengths must be ≥ \d+ tokens for cwe, got 900"),
        ("cwe", 30000, r"lengths must be ≤ \d+ tokens for cwe, got 30000"),
    ],
)
def test_ruler_text_rejects_what_it_cannot_build(
    tokenizer: Tokenizer, task: str, length: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ruler_text(tokenizer, task, length)
