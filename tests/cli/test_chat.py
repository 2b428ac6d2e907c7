"""`chat`, as a shell calls it: models found, files read and saved, mistakes in one line."""

import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

import infini
from infini.cli.main import main
from toy import sentence

SMALL = ("--window", "8", "--sinks", "2", "--max-new-tokens", "5")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A base, and a text to read; of what is set up for a process, the bars alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infini.cli.main.configure_logging", lambda: None)
    Path("base").symlink_to(base_folder)
    Path("book.txt").write_text(sentence(200, 3))
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    yield
    if bars:
        transformers_logging.enable_progress_bar()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["chat", *words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["chat", *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    return error.removeprefix("error: ").rstrip("\n")


def saved(model: PreTrainedModel) -> None:
    """A model with a memory in `mine`, of the base in `base`."""
    model.config._name_or_path = "base"
    infini.retrofit(model, "window", window=8, sinks=2).save_pretrained("mine")


def test_a_base_reads_a_text_saves_its_memory_and_takes_it_up_again(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infini")
    words = ("--file", "book.txt", "--save-memory", "new/memory.safetensors", "--prompt", " of")
    answer = said(capsys, "base", *SMALL, *words)
    assert len(answer) > 3
    assert caplog.messages[0] == "reading book.txt …"
    assert caplog.messages[-2].startswith("book.txt: ")
    size = Path("new/memory.safetensors").stat().st_size
    assert caplog.messages[-1] == f"new/memory.safetensors: the memory, {size:,} bytes"
    again = ("--memory", "new/memory.safetensors", "--prompt", " of")
    assert said(capsys, "base", *SMALL, *again) == answer
    assert said(capsys, "base", *SMALL, "--prompt", " of") != answer


def test_questions_are_the_lines_of_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the union\n\nto trade\nthe union"))
    out = said(capsys, "base", *SMALL, "--file", "book.txt")
    one, two = (
        said(capsys, "base", *SMALL, "--file", "book.txt", "--prompt", question)
        for question in ("the union", "to trade")
    )
    assert one != two
    assert out == one + two + one


def test_a_terminal_is_asked(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO, "infini")
    monkeypatch.setattr(sys, "stdin", Terminal("the union\n"))
    out = said(capsys, "base", *SMALL)
    assert out.startswith("> ")
    assert out.endswith("\n> ")
    assert caplog.messages[-1].endswith("Ctrl-D ends.")


def test_a_saved_model_finds_its_base_or_is_given_it(
    model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(model)
    words = ("mine", "--file", "book.txt", "--prompt", " of", "--max-new-tokens", "5")
    answer = said(capsys, *words)
    Path("base").rename("moved")
    assert said(capsys, *words, "--base", "moved") == answer
    assert refused(capsys, *words).endswith("; --base says where it is now")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("nowhere --prompt a", "no model at 'nowhere', give a folder written by save_pretrained"),
        ("./nowhere --prompt a", "no model at './nowhere', give a folder written by save_pretrained"),
        (". --prompt a", "no model at '.', give a folder"),
        ("base --file nothing.txt", "nothing.txt: no such file"),
        ("base --file .", ".: no such file"),
        ("base --file latin.txt", "latin.txt: not UTF-8 (byte 0xf6 at 1): save it as UTF-8"),
        ("base --memory nothing", "nothing: no such file"),
        ("base --memory book.txt", "book.txt: no readable safetensors file"),
        ("base --save-memory m", "--save-memory: nothing is read"),
        ("base --file book.txt --save-memory .", ".: is a folder, a file's name is needed"),
        ("base --file book.txt --save-memory book.txt/m", "book.txt/m: cannot be written"),
        ("base --window 8 --prompt=", "--prompt: at least one character is needed"),
        ("base --prompt a", "window + sinks: 33 at most (the base's context without 31"),
        ("base --window 0 --prompt a", "window must be ≥ 1, got 0"),
        ("base --base base --prompt a", "--base: for a saved model with a memory, base is none"),
        ("mine --kept 3 --sinks 1", "--kept: for a plain base, mine has its own"),
        ("mine --base book.txt", "no model at 'book.txt'"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, shown: str, model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(model)
    Path("latin.txt").write_bytes(b"z\xf6")
    if "--window" not in words and words.startswith("base --") and "prompt" not in words:
        words += " --window 8"
    assert refused(capsys, *words.split()).startswith(shown)


def test_another_base_in_its_place_is_told_apart(
    model: PreTrainedModel, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(model)
    infini.remove(model).get_input_embeddings().weight.data.add_(1.0)
    Path("base").unlink()
    shutil.copytree(base_folder, "base")
    model.save_pretrained("base")
    assert refused(capsys, "mine", "--prompt", "a") == (
        "mine: made for another base than 'base' here: --base names it"
    )
    assert "made for another base than" in refused(
        capsys, "mine", "--prompt", "a", "--base", "base"
    )
