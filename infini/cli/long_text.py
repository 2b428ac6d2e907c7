"""A text file of any length as tokens, a piece at a time: never held whole."""

import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import IncrementalNewlineDecoder
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.console.progress import progress
from infini.errors import InputError

PIECE = 2**14  # bytes that are read at once
BEFORE_GAP = re.compile(r".*\S(?= \S)", re.DOTALL)  # up to the last space between two words
ANCHOR = "a"  # what a piece that begins with a space is tokenised behind


def tokens_of(file: Path, tokenizer: Tokenizer, before: str = "") -> Iterator[list[int]]:
    """The tokens of `before` and a file's text, in order, under a progress bar.

    Cut between words, these are the tokens of the text in one. Behind a letter no tokenizer puts
    a mark of a text's beginning in front of a piece. InputError for what is no UTF-8 text.
    """
    anchor = encode(tokenizer, ANCHOR)
    for number, piece in enumerate(_pieces(file, before)):
        if number and piece.startswith(" "):
            yield encode(tokenizer, ANCHOR + piece)[len(anchor) :]
        else:
            yield encode(tokenizer, piece)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's tokens, no special ones but those it spells out."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return tokens


def _pieces(file: Path, rest: str = "") -> Iterator[str]:
    """`rest` and the text, cut where possible before a space between two words."""
    for new in _parts(file):
        text = rest + new
        found = BEFORE_GAP.match(text)
        cut = found.end() if found else len(text)
        yield text[:cut]
        rest = text[cut:]
    if rest:
        yield rest


def _parts(file: Path) -> Iterator[str]:
    """The text as it is read, line ends \\n; InputError for what is no UTF-8 text."""
    decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8-sig")(), translate=True)
    read = 0
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for start in progress(range(0, size, PIECE), f"reading {file.name}"):
                part = stream.read(PIECE)
                read = start + len(part)
                text = decoder.decode(part, final=read >= size)
                if "\0" in text:
                    raise InputError(
                        f"{file}: NUL characters: no text, or UTF-16: save it as UTF-8"
                    )
                yield text
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start
        wrong = f"byte 0x{error.object[error.start]:02x} at {place:,}"
        raise InputError(f"{file}: not UTF-8 ({wrong}): save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{file}: not readable: {error.strerror}") from None
