"""Command `chat`: models, files, questions, errors in one line."""

import io
import logging
import shutil
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import infini
from cli.commands import command_error, run_command
from toy import sentence

SMALL = ("--window", "8", "--sinks", "2", "--max-new-tokens", "5")


@pytest.fixture(autouse=True)
def folder(folder_with_base: None) -> None:
    """A folder with a base and a text."""
    Path("book.txt").write_text(sentence(200, 3))


def save_model(model: PreTrainedModel) -> None:
    """Save a model with a memory to `mine`, made for the base in `base`."""
    model.config._name_or_path = "base"
    infini.retrofit(model, "window", window=8, sinks=2).save_pretrained("mine")


def test_chat_saves_and_loads_memory(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infini")
    words = ("--file", "book.txt", "--save-memory", "new/memory.safetensors", "--prompt", " of")
    answer = run_command(capsys, "chat", "base", *SMALL, *words)
    assert len(answer) > 3
    assert caplog.messages[0] == "reading book.txt …"
    assert caplog.messages[-2].startswith("book.txt: ")
    size = Path("new/memory.safetensors").stat().st_size
    assert caplog.messages[-1] == f"new/memory.safetensors: the memory, {size:,} bytes"
    again = ("--memory", "new/memory.safetensors", "--prompt", " of")
    assert run_command(capsys, "chat", "base", *SMALL, *again) == answer
    assert run_command(capsys, "chat", "base", *SMALL, "--prompt", " of") != answer


def test_chat_reads_questions_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the union\n\nto trade\nthe union"))
    out = run_command(capsys, "chat", "base", *SMALL, "--file", "book.txt")
    one, two = (
        run_command(capsys, "chat", "base", *SMALL, "--file", "book.txt", "--prompt", question)
        for question in ("the union", "to trade")
    )
    assert one != two
    assert out == one + two + one


def test_chat_prompts_on_terminal(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO, "infini")
    monkeypatch.setattr(sys, "stdin", Terminal("the union\n"))
    out = run_command(capsys, "chat", "base", *SMALL)
    assert out.startswith("> ")
    assert out.endswith("\n> ")
    assert caplog.messages[-1].endswith("Ctrl-D ends.")


def test_chat_finds_base_of_saved_model(
    model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model)
    words = ("mine", "--file", "book.txt", "--prompt", " of", "--max-new-tokens", "5")
    answer = run_command(capsys, "chat", *words)
    Path("base").rename("moved")
    assert run_command(capsys, "chat", *words, "--base", "moved") == answer
    error = command_error(capsys, "chat", *words)
    assert error.endswith("or say where the base is: --base FOLDER")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("nowhere --prompt a", "no model at 'nowhere', give a folder written by save_pretrained"),
        (
            "./nowhere --prompt a",
            "no model at './nowhere', give a folder written by save_pretrained",
        ),
        (". --prompt a", "no model at '.', give a folder"),
        ("base --file nothing.txt", "nothing.txt: no such file"),
        ("base --file .", ".: no such file"),
        ("base --file latin.txt", "latin.txt: not UTF-8 (byte 0xf6 at 1); save it as UTF-8"),
        ("base --memory nothing", "nothing: no such file"),
        ("base --memory book.txt", "book.txt: no readable safetensors file"),
        ("base --memory book.txt --system a", "--system is only for a new memory"),
        ("base --memory book.txt --pin-system", "--pin-system is only for a new memory"),
        ("base --window 8 --prompt a --system a", "--system needs a tokenizer with a chat templ"),
        ("base --window 8 --prompt a --pin-system", "--pin-system: the tokenizer has no chat te"),
        ("base --save-memory m", "--save-memory needs --file or --memory"),
        ("base --file book.txt --save-memory .", "--save-memory must be a file, got folder ."),
        ("base --file book.txt --save-memory book.txt/m", "book.txt/m: cannot be written"),
        ("base --window 8 --prompt=", "--prompt must have at least one character"),
        ("base --prompt a", "window + sinks must be ≤ 33 (the base's context of 64"),
        ("base --window 0 --prompt a", "window must be ≥ 1, got 0"),
        ("base --base base --prompt a", "--base is only for a saved model with a memory, got base"),
        ("mine --retained 3 --sinks 1", "--retained is only for a base without a memory; mine has"),
        ("mine --base book.txt", "no model at 'book.txt'"),
    ],
)
def test_chat_rejects_invalid_arguments(
    words: str, shown: str, model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model)
    Path("latin.txt").write_bytes(b"z\xf6")
    if "--window" not in words and words.startswith("base --") and "prompt" not in words:
        words += " --window 8"
    assert command_error(capsys, "chat", *words.split()).startswith(shown)


def test_chat_rejects_another_base(
    model: PreTrainedModel, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model)
    infini.remove(model).get_input_embeddings().weight.data.add_(1.0)
    Path("base").unlink()
    shutil.copytree(base_folder, "base")
    model.save_pretrained("base")
    for moved in ([], ["--base", "base"]):
        error = command_error(capsys, "chat", "mine", "--prompt", "a", *moved)
        assert error.startswith("mine: made for another base than 'base'")
