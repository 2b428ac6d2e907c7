"""Retrieval tasks of random words: six of RULER's (arXiv 2404.06654), and records in order.

RULER's tasks are built from its definitions (section 3 and appendix B), with words of our own and
without the worked example that it puts before variable tracking and common words:

- `niah_single_1`: a number behind a key, in a haystack of five noise sentences, repeated;
- `niah_multikey_2`: the same among lines that are all such needles;
- `niah_multikey_3`: the same, keys and values are UUIDs;
- `vt`, variable tracking: all variables of a chain of assignments, in noise;
- `cwe`, common words extraction: the ten words of a numbered list that appear most often;
- `fwe`, frequent words extraction: the three most frequent of coded words with a Zeta distribution.

`records_last` and `records_first` are a list of keys with their values and the question about the
last or the first one, after the "recency" and "needle_first" tests of awslabs/keys_values, where
streaming eviction lost even the last record of about 2,000 tokens.

Every text has a context, which is read into a memory first, then a question and its answer.
"""

import math
import string
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import NamedTuple
from uuid import UUID

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.haystacks import CODE_WORDS
from infini.corpus.special_tokens import beginning_of_text
from infini.errors import InputError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HOPS = 4  # of variable tracking: assignments of one variable to the next
VARIABLE_LETTERS = 5
COMMON_WORDS = 10  # asked for by common words extraction
COMMON_COUNT, UNCOMMON_COUNT = 30, 3  # how often each common and each other word appears
FREQUENT_WORDS = 3  # asked for by frequent words extraction
ZETA_EXPONENT, ZETA = 2, math.pi**2 / 6  # the k-th most frequent word's share: 1 / (k² ζ(2))
CODED_LETTERS = 6
TOKENS_PER_CODED_WORD = 50  # a text of n tokens has n / 50 different coded words

ADJECTIVES = (
    "agile", "ample", "amber", "ancient", "arctic", "bitter", "bold", "brave", "brief", "bright",
    "brisk", "broad", "calm", "candid", "careful", "cheerful", "civil", "clever", "cold", "crisp",
    "curious", "damp", "deep", "distant", "dry", "eager", "early", "earnest", "elegant", "even",
    "faint", "famous", "fierce", "firm", "flat", "fragile", "frank", "fresh", "gentle", "giant",
    "glad", "golden", "grand", "grave", "happy", "hollow", "honest", "humble", "idle", "jolly",
    "keen", "kind", "large", "lively", "lonely", "loud", "loyal", "lucky", "mellow", "mild",
    "modest", "narrow", "neat", "noble", "odd", "patient", "plain", "polite", "proud", "purple",
    "quick", "quiet", "rapid", "rare", "rough", "round", "royal", "rural", "rusty", "scarce",
    "serene", "sharp", "shy", "silent", "simple", "sleepy", "slim", "smooth", "solemn", "solid",
    "steady", "steep", "stern", "sturdy", "subtle", "sweet", "swift", "tall", "tame", "tender",
    "tidy", "timid", "vague", "vast", "vivid", "warm", "weary", "wise", "witty", "young",
)  # fmt: skip
NOUNS = (
    *CODE_WORDS, "actor", "album", "almond", "ankle", "archer", "armor", "artist", "atlas",
    "attic", "autumn", "bakery", "balcony", "bamboo", "banner", "barber", "beetle", "bench",
    "bicycle", "biscuit", "blanket", "border", "bucket", "butter", "cabin", "cactus", "camera",
    "canoe", "captain", "caravan", "carrot", "cellar", "chapel", "chimney", "circus", "cliff",
    "coast", "comet", "compass", "concert", "coral", "corner", "cottage", "cousin", "cricket",
    "curtain", "dancer", "diamond", "dinner", "doctor", "donkey", "drawer", "drum", "editor",
    "elbow", "ember", "fabric", "farmer", "fence", "ferry", "festival", "fiddle", "finger",
    "flame", "flute", "fountain", "fox", "gallery", "garlic", "gate", "giraffe", "glove", "goose",
    "grape", "guitar", "hallway", "hamlet", "hedge", "helper", "heron", "hill", "hinge", "hotel",
    "hunter", "iceberg", "ink", "jewel", "judge", "kitchen", "kite", "lagoon", "lake", "lawyer",
    "leaf", "letter", "library", "lighthouse", "lizard", "lobster", "magnet", "market", "mason",
    "melon", "merchant", "meteor", "miner", "monk", "mosaic", "motor", "mountain", "museum",
    "napkin", "nest", "notebook", "novel", "oak", "ocean", "office", "olive", "onion", "opera",
    "organ", "owl", "oyster", "paddle", "painter", "panther", "parade", "parrot", "pebble",
    "pencil", "piano", "pigeon", "pirate", "plum", "pocket", "poet", "pond", "potter", "pumpkin",
    "puzzle", "quilt", "raft", "railway", "raven", "recipe", "river", "robin", "rocket", "roof",
    "rope", "sailor", "salmon", "sandal", "scarf", "school", "sculptor", "shepherd", "shovel",
    "singer", "sister", "snail", "sparrow", "spoon", "square", "stable", "statue", "stream",
    "summer", "sunset", "table", "tailor", "teacher", "thunder", "ticket", "tiger", "tower",
    "trumpet", "tulip", "turtle", "uncle", "valley", "velvet", "village", "volcano", "wagon",
    "walnut", "weaver", "whale", "wheel", "whistle", "willow", "winter", "wizard", "wolf",
    "yacht", "zebra",
)  # fmt: skip


class RulerTokens(NamedTuple):
    """The parts of a text as tokens, (n,) int64 each; the answer follows the question at once."""

    context: Tensor
    question: Tensor
    answer: Tensor


class RulerText(NamedTuple):
    """Text of a retrieval task."""

    task: str  # one of RULER_TASKS
    length: int  # tokens that the text may have, question and answer included
    sample: int
    context: str
    question: str  # ends with the words that lead to the answer
    answer: str
    depth: float | None  # of the line asked for: 0 the first one; None: there are several
    distance: int | None  # tokens from that line's end to the answer
    tokens: RulerTokens


class _Draft(NamedTuple):
    """Text before its tokens are counted."""

    context: str
    question: str
    answer: str
    depth: float | None = None
    after: str = ""  # the context after the line asked for


class _Task(NamedTuple):
    """Builder of a task's texts, by a number of units: lines, or words of a list."""

    # Arguments: source of random numbers, number of units, tokens that the text may have
    build: Callable[[Random, int, int], _Draft]
    least: int = 1  # units
    most: int | None = None  # units; None: any number


def ruler_texts(
    tokenizer: Tokenizer,
    *,
    tasks: Iterable[str] | None = None,
    lengths: Iterable[int] = (1024, 2048, 4096),
    samples: int = 20,
    seed: int = 0,
) -> Iterator[RulerText]:
    """Yield texts by task, then by length.

    Args:
        tokenizer: The base's.
        tasks: Names; None: all of `RULER_TASKS`.
        lengths: Tokens that a text may have, question and answer included.
        samples: Texts per task and length.
        seed: Decides everything random, with the task, the length and the number of the sample.

    Raises:
        InputError: An unknown task, or one that cannot be as short or as long.
    """
    lengths = list(lengths)
    for task in RULER_TASKS if tasks is None else tasks:
        for length in lengths:
            yield from (ruler_text(tokenizer, task, length, i, seed) for i in range(samples))


def ruler_text(
    tokenizer: Tokenizer, task: str, length: int, sample: int = 0, seed: int = 0
) -> RulerText:
    """Build one text, with as many lines as fit, or about as many words of a list.

    Args:
        tokenizer: The base's.
        task: One of `RULER_TASKS`.
        length: Tokens that the text may have, question and answer included.
        sample: Number of the text; others have other words.
        seed: Decides everything random, with the task, the length and the number of the sample.

    Returns:
        The text, at most `length` tokens long, and less than a line shorter.

    Raises:
        InputError: An unknown task, or one that cannot be as short or as long.
    """
    if task not in _TASKS:
        raise InputError(f"tasks must be among {', '.join(_TASKS)}, got {task}")
    recipe = _TASKS[task]

    def draft(units: int) -> _Draft:
        return recipe.build(Random(f"{seed} {task} {length} {sample}"), units, length)

    def size(units: int) -> int:
        return sum(map(len, _encode(draft(units), tokenizer)))

    if (shortest := size(recipe.least)) > length:
        raise InputError(f"lengths must be ≥ {shortest} tokens for {task}, got {length}")
    most = min(recipe.most or length, length)  # every unit has a token at least
    units = _largest(lambda n: size(n) <= length, recipe.least, most)
    if units == recipe.most:
        raise InputError(f"lengths must be ≤ {size(units)} tokens for {task}, got {length}")
    chosen = draft(units)
    tokens = _encode(chosen, tokenizer)
    distance = None
    if chosen.depth is not None:
        distance = len(_ids(chosen.after, tokenizer)) + len(tokens.question)
    texts = (chosen.context, chosen.question, chosen.answer)
    return RulerText(task, length, sample, *texts, chosen.depth, distance, tokens)


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """Return the largest number of units that fit, by bisection; `least` units do."""
    low, high = least, min(2 * least, most + 1)
    while high <= most and fits(high):
        low, high = high, min(2 * high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _ids(text: str, tokenizer: Tokenizer) -> Tensor:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _encode(draft: _Draft, tokenizer: Tokenizer) -> RulerTokens:
    """Encode the parts, the context after the tokenizer's beginning of text if it adds one."""
    context, question, answer = (_ids(text, tokenizer) for text in draft[:3])
    begin = torch.tensor(beginning_of_text(tokenizer), dtype=torch.int64)
    return RulerTokens(torch.cat([begin, context]), question, answer)


def _keys(random: Random, count: int) -> list[str]:
    """Draw different keys, an adjective and a noun each."""
    drawn = random.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    pairs = (divmod(index, len(NOUNS)) for index in drawn)
    return [f"{ADJECTIVES[adjective]}-{NOUNS[noun]}" for adjective, noun in pairs]


def _numbers(random: Random, count: int) -> list[str]:
    """Draw different numbers of seven digits."""
    return list(map(str, random.sample(range(10**6, 10**7), count)))


def _uuids(random: Random, count: int) -> list[str]:
    return [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


def _letters(random: Random, alphabet: str, letters: int, count: int) -> list[str]:
    """Draw different words of random letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(random.choices(alphabet, k=letters))] = None
    return list(words)


def _in_lines(intro: str, lines: list[str], asked: int, subject: str, answer: str) -> _Draft:
    """Join an introduction and lines, and ask what the subject is that line `asked` tells."""
    question = f"\nWhat is the {subject}? The {subject} is"
    depth, after = asked / (len(lines) - 1), "".join(f"\n{line}" for line in lines[asked + 1 :])
    return _Draft("\n".join([intro, *lines]), question, f" {answer}", depth, after)


def _needles(kind: str, keys: list[str], values: list[str]) -> list[str]:
    return [
        f"One of the special magic {kind}s for {key} is: {value}."
        for key, value in zip(keys, values, strict=True)
    ]


def _with_needle(kind: str, lines: list[str], asked: int, key: str, value: str) -> _Draft:
    """Ask for the value of the needle at line `asked`."""
    intro = (
        f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
        f"There will be a question about the {kind} afterwards."
    )
    subject = f"special magic {kind} for {key} mentioned in the text above"
    return _in_lines(intro, lines, asked, subject, value)


def _niah_single_1(random: Random, units: int, length: int) -> _Draft:
    (key,), (value,) = _keys(random, 1), _numbers(random, 1)
    lines, asked = [NOISE] * units, random.randint(0, units)
    lines.insert(asked, *_needles("number", [key], [value]))
    return _with_needle("number", lines, asked, key, value)


def _niah_multikey_2(random: Random, units: int, length: int) -> _Draft:
    keys, values = _keys(random, units), _numbers(random, units)
    asked = random.randrange(units)
    needles = _needles("number", keys, values)
    return _with_needle("number", needles, asked, keys[asked], values[asked])


def _niah_multikey_3(random: Random, units: int, length: int) -> _Draft:
    keys, values = _uuids(random, units), _uuids(random, units)
    asked = random.randrange(units)
    needles = _needles("uuid", keys, values)
    return _with_needle("uuid", needles, asked, keys[asked], values[asked])


def _variable_tracking(random: Random, units: int, length: int) -> _Draft:
    names = _letters(random, string.ascii_uppercase, VARIABLE_LETTERS, HOPS + 1)
    value = random.randrange(10**4, 10**5)
    sources = [str(value), *(f"VAR {name}" for name in names)]
    positions = sorted(random.randint(0, units) for _ in names)
    lines = [NOISE] * units
    for number, (name, source) in enumerate(zip(names, sources, strict=False)):
        lines.insert(positions[number] + number, f"VAR {name} = {source}")
    intro = "Memorize and track the chain of variable assignments hidden in the following text."
    question = (
        f"Question: Find all variables that are assigned the value {value} in the text above. "
        f"Answer: According to the chain of variable assignments in the text above, {len(names)} "
        f"variables are assigned the value {value}. They are:"
    )
    return _Draft("\n".join([intro, *lines]), f"\n{question}", f" {', '.join(names)}")


def _common_words(random: Random, units: int, length: int) -> _Draft:
    """Build a list of `units` words, or up to two fewer.

    Common words take at most half of the list, which in a short text are fewer than 30 of each.
    """
    count = min(COMMON_COUNT, units // (2 * COMMON_WORDS))
    others = (units - COMMON_WORDS * count) // UNCOMMON_COUNT
    words = random.sample([*ADJECTIVES, *NOUNS], COMMON_WORDS + others)
    common = words[:COMMON_WORDS]
    listed = common * count + words[COMMON_WORDS:] * UNCOMMON_COUNT
    random.shuffle(listed)
    intro = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often."
    )
    numbered = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    question = (
        f"Question: What are the {COMMON_WORDS} most common words in the above list? "
        f"Answer: The {COMMON_WORDS} words that appear most often in the list are:"
    )
    answer = ", ".join(sorted(common, key=listed.index))
    return _Draft(f"{intro}\n{numbered}", f"\n{question}", f" {answer}")


def _frequent_words(random: Random, units: int, length: int) -> _Draft:
    """Build a coded text of at most `units` words; the most frequent one is noise, dots."""
    count = max(FREQUENT_WORDS + 2, length // TOKENS_PER_CODED_WORD)
    words = ["...", *_letters(random, string.ascii_lowercase, CODED_LETTERS, count - 1)]
    text = [
        word
        for rank, word in enumerate(words, 1)
        for _ in range(int(units / rank**ZETA_EXPONENT / ZETA))
    ]
    random.shuffle(text)
    intro = "Read the following coded text and track the frequency of each coded word."
    question = (
        "Question: Ignore the dots. What are the three words that appear most often in the coded "
        "text above? Answer: The three words that appear most often in the coded text are:"
    )
    answer = ", ".join(words[1 : 1 + FREQUENT_WORDS])
    return _Draft(f"{intro}\n{' '.join(text)}", f"\n{question}", f" {answer}")


def _records(random: Random, units: int, length: int, last: bool) -> _Draft:
    keys, values = _keys(random, units), _numbers(random, units)
    lines = [f"{key}: {value}" for key, value in zip(keys, values, strict=True)]
    asked = units - 1 if last else 0
    intro = "Memorize the following records, a key and its value each."
    subject = f"value of {keys[asked]} in the records above"
    return _in_lines(intro, lines, asked, subject, values[asked])


_KEYS = len(ADJECTIVES) * len(NOUNS)
_LISTED = COMMON_WORDS * COMMON_COUNT + UNCOMMON_COUNT * (
    len(ADJECTIVES) + len(NOUNS) - COMMON_WORDS
)
_TASKS = {
    "niah_single_1": _Task(_niah_single_1),
    "niah_multikey_2": _Task(_niah_multikey_2, least=2, most=_KEYS),
    "niah_multikey_3": _Task(_niah_multikey_3, least=2),
    "vt": _Task(_variable_tracking),
    # A common word appears more often than the others; there are words enough
    "cwe": _Task(_common_words, least=2 * COMMON_WORDS * (UNCOMMON_COUNT + 1), most=_LISTED),
    # The counts of the words asked for, and of the next one, differ
    "fwe": _Task(_frequent_words, least=60),
    "records_last": _Task(partial(_records, last=True), least=2, most=_KEYS),
    "records_first": _Task(partial(_records, last=False), least=2, most=_KEYS),
}
RULER_TASKS = tuple(_TASKS)
