"""Tokens of a text file of any length, a piece at a time; it is never held whole."""

import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import IncrementalNewlineDecoder
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.console.progress import progress
from infini.errors import InputError

PIECE_BYTES = 2**14  # read at once
_UP_TO_LAST_GAP = re.compile(r".*\S(?= \S)", re.DOTALL)  # up to the last space between two words
_PREFIX = "a"  # a piece that begins with a space is tokenized after it


def read_tokens(file: Path, tokenizer: Tokenizer, before: str = "") -> Iterator[list[int]]:
    """Yield the tokens of a text file in order, under a progress bar.

    The file is cut between words, so that these are the tokens of the whole text. After a letter
    no tokenizer adds a mark for the beginning of a text.

    Args:
        file: a UTF-8 text.
        tokenizer: the tokenizer.
        before: text in front of the file's.

    Raises:
        InputError: the file is not readable, or no UTF-8 text.
    """
    prefix = token_ids(tokenizer, _PREFIX)
    for number, piece in enumerate(_pieces(file, before)):
        if number and piece.startswith(" "):
            yield token_ids(tokenizer, _PREFIX + piece)[len(prefix) :]
        else:
            yield token_ids(tokenizer, piece)


def read_text(file: Path) -> str:
    """Return a text file whole; InputError if it is not readable, or no UTF-8 text."""
    return "".join(_parts(file))


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a text's tokens, without special ones that it does not spell out."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def _pieces(file: Path, rest: str = "") -> Iterator[str]:
    """Yield `rest` and the text, cut before a space between two words where there is one."""
    for part in _parts(file, f"reading {file.name}"):
        text = rest + part
        match = _UP_TO_LAST_GAP.match(text)
        cut = match.end() if match else len(text)
        yield text[:cut]
        rest = text[cut:]
    if rest:
        yield rest


def _parts(file: Path, title: str = "") -> Iterator[str]:
    """Yield the text as it is read, with \\n as line ends; under a progress bar with a title."""
    decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8-sig")(), translate=True)
    read = 0
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for start in progress(range(0, size, PIECE_BYTES), title):
                part = stream.read(PIECE_BYTES)
                read = start + len(part)
                text = decoder.decode(part, final=read >= size)
                if "\0" in text:
                    raise InputError(f"{file}: NUL characters, UTF-16?; save it as UTF-8")
                yield text
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start
        byte = f"byte 0x{error.object[error.start]:02x} at {place:,}"
        raise InputError(f"{file}: not UTF-8 ({byte}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{file}: not readable: {error.strerror}") from None
