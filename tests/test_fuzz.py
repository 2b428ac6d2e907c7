"""Files damaged at random: every loader gives the right result or a one-line error.

The test command tries a few fixed examples; `make fuzz` draws new ones for about ten minutes.
"""

import logging
import os
import re
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_artifacts
from toy_artifacts import Artifact, make, outcome

settings.register_profile("few", max_examples=12, derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=6000, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("FUZZ", "few"))

# A value of JSON, YAML or CSV, and what may replace it.
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+')
OTHER = (
    b"null", b"true", b"-1", b"0", b"2", b"1e999", b"NaN", b"1" + b"0" * 30, b"0.5", b'""', b'"x"',
    b"[]", b"{}", b"[1]", b'{"a": 1}', b'"\\u0000"', b"F16", b'"BF16"', b'"I64"', b'"F4"',
    b"[0, 4]", b"\xff", b"[" * 2000, b"",
)  # fmt: skip


class Edit(NamedTuple):
    """A change of a file's content at an offset, counted from the end if negative."""

    kind: Callable[[bytes, int, bytes], bytes]
    at: int
    new: bytes

    def applied(self, content: bytes) -> bytes:
        size = len(content) + 1
        return self.kind(
            content, self.at % size if self.at >= 0 else max(0, size + self.at), self.new
        )


def cut(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at]


def insert(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at:]


def overwrite(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def flip(content: bytes, at: int, new: bytes) -> bytes:
    flipped = 1 << new[0] % 8
    return content[:at] + bytes(byte ^ flipped for byte in content[at : at + 1]) + content[at + 1 :]


def drop(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + content[at + len(new) :]


def move(content: bytes, at: int, new: bytes) -> bytes:
    return content[at:] + content[:at]


def replace_value(content: bytes, at: int, new: bytes) -> bytes:
    """Replace one value of a text, or of a safetensors file's header."""
    header = header_of(content)
    text = content if header is None else header
    if not (values := list(VALUE.finditer(text))):
        return content
    found = values[at % len(values)]
    text = text[: found.start()] + OTHER[new[0] % len(OTHER)] + text[found.end() :]
    if header is None:
        return text
    return struct.pack("<Q", len(text)) + text + content[8 + len(header) :]


def header_of(content: bytes) -> bytes | None:
    """Return the header of a safetensors file; None for other files."""
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    return header if len(content) >= 8 + size and header[:1] == b"{" else None


KINDS = (cut, insert, overwrite, flip, drop, move, replace_value, replace_value)
edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(KINDS),
        st.integers(-(2**20), 2**20),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path
) -> Iterator[dict[str, Artifact]]:
    """Return the files by name, in the working directory."""
    home, here = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("fuzz") / "here"
    make(home, base_folder)
    shutil.copy(ROOT / "params.yaml", home)
    shutil.copytree(home, here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        logging.disable(logging.WARNING)
        yield toy_artifacts.artifacts(here, home)
        logging.disable(logging.NOTSET)


NAMES = (
    "prepared", "settings", "model", "window settings", "window model", "memory", "window",
    "checkpoint", "losses", "curves", "metrics", "base", "config", "tokenizer", "tokens", "rows",
    "text", "params",
)  # fmt: skip


def test_names_are_all_artifacts(artifacts: dict[str, Artifact]) -> None:
    assert set(NAMES) == artifacts.keys()


@pytest.mark.parametrize("name", NAMES)
def test_randomly_damaged_file_is_one_line_or_harmless(
    artifacts: dict[str, Artifact], name: str
) -> None:
    artifact = artifacts[name]
    content, right = artifact.file.read_bytes(), artifact.read()

    @given(edits)
    def damaged(drawn: list[Edit]) -> None:
        damage = content
        for edit in drawn:
            damage = edit.applied(damage)
        artifact.file.parent.mkdir(exist_ok=True)
        artifact.file.write_bytes(damage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = outcome(artifact)
        if isinstance(found, str):
            assert "\n" not in found
            assert len(found) < 600
        elif artifact.sealed and found is not None:
            assert found == right

    damaged()
    artifact.file.parent.mkdir(exist_ok=True)
    artifact.file.write_bytes(content)
    assert artifact.read() == right
