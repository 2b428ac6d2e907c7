"""Bars on a terminal, plain lines elsewhere."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from transformers.utils import logging as transformers_logging

from infini.console import progress as module
from infini.console.progress import configure_logging, on_terminal, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_terminal_is_about_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not on_terminal()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert on_terminal()


def test_progress_logs_its_title_without_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress([3, 1, 2], "passkey")) == [3, 1, 2]
    assert caplog.messages == ["passkey …"]
    assert stream.getvalue() == ""


def test_progress_logs_time_left_without_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    times = iter([0.0, 0.0, 20.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    assert list(progress([3, 1, 2, 5, 4], "passkey")) == [3, 1, 2, 5, 4]
    assert caplog.messages == [
        "passkey …", "passkey: 2 of 5, 01:00 left", "passkey: 4 of 5, 00:20 left",
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_without_title_is_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    caplog.set_level(logging.INFO)
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress([3, 1, 2], "")) == [3, 1, 2]
    assert not caplog.messages
    assert stream.getvalue() == ""


def test_progress_draws_a_vanishing_bar_on_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress([3, 1, 2], "passkey")
    assert next(iter(bar)) == 3
    assert "passkey:   0%" in stream.getvalue()
    assert "0/3" in stream.getvalue()
    assert list(bar) == [3, 1, 2]
    last = stream.getvalue().rstrip("\r").rsplit("\r", 1)[-1]
    assert last.strip() == ""  # blank over the bar
    assert not caplog.messages


@pytest.fixture
def levels() -> Iterator[None]:
    """Restore what `configure_logging` changes for the process."""
    noisy = [logging.getLogger(name) for name in ("httpx", "datasets", "fsspec", "huggingface_hub")]
    before = [logger.level for logger in (logging.root, *noisy)]
    bars = transformers_logging.is_progress_bar_enabled()
    yield
    for logger, level in zip((logging.root, *noisy), before, strict=True):
        logger.setLevel(level)
    if bars:
        transformers_logging.enable_progress_bar()


@pytest.mark.usefixtures("levels")
def test_configure_logging_writes_plain_lines_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_logging()
    logging.getLogger("infini.any").info("a line")
    logging.getLogger("infini.any").debug("hidden")
    for noisy in ("httpx", "datasets", "fsspec"):
        logging.getLogger(noisy).info("noise")
        logging.getLogger(noisy).warning("%s warns", noisy)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "a line\nhttpx warns\ndatasets warns\nfsspec warns\n"


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("terminal", [False, True])
def test_configure_logging_disables_bars_of_transformers_without_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(module, "on_terminal", lambda: terminal)
    transformers_logging.enable_progress_bar()
    configure_logging()
    assert transformers_logging.is_progress_bar_enabled() == terminal
