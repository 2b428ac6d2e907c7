"""Command `chat`: read a long text into a model's memory and answer questions about it."""

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel

from infini.cli.conversation import Conversation
from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer
from infini.model.loading import load
from infini.model.retrofit import retrofit
from infini.model.serialization import CONFIG_FILE

log = logging.getLogger(__name__)

WINDOW_DEFAULTS = {"window": 256, "sinks": 4, "retained": 128}  # for a base without a memory


def run_chat(arguments: Namespace) -> None:
    """Read what there is to read, save the memory if asked to, and answer.

    Args:
        arguments: options of the command, see `python -m infini chat --help`.

    Raises:
        InputError: a file, a model or an option is invalid.
    """
    _check_files(arguments)
    model = _load_model(arguments)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    base = model.infini_config["base"]
    tokenizer = load_tokenizer(base["model"], base["revision"])
    conversation = Conversation(model, tokenizer, arguments.system, arguments.pin_system)
    if arguments.memory:
        conversation.load(arguments.memory)
    if arguments.file:
        log.info("%s: %s tokens read", arguments.file, f"{conversation.read(arguments.file):,}")
    if file := arguments.save_memory:
        conversation.save(file)
        log.info("%s: the memory, %s bytes", file, f"{file.stat().st_size:,}")
    for question in _questions() if arguments.prompt is None else [arguments.prompt]:
        conversation.answer(question, arguments.max_new_tokens)


def _check_files(arguments: Namespace) -> None:
    """Raise InputError for a missing or invalid file, before a model is loaded."""
    for file in (arguments.file, arguments.memory):
        if file and not file.is_file():
            raise InputError(f"{file}: no such file")
    for name, given in (("system", arguments.system), ("pin-system", arguments.pin_system)):
        if arguments.memory and given not in (None, False):
            raise InputError(f"--{name} is only for a new memory: --memory has read a text already")
    if arguments.save_memory and not (arguments.file or arguments.memory):
        raise InputError("--save-memory needs --file or --memory: nothing is read otherwise")
    if arguments.save_memory and arguments.save_memory.is_dir():
        raise InputError(f"--save-memory must be a file, got folder {arguments.save_memory}")


def _load_model(arguments: Namespace) -> PreTrainedModel:
    """Load a saved model with a memory, or retrofit a base with a window and retained pairs."""
    folder = Path(arguments.model).expanduser()
    given = {
        name: value for name in WINDOW_DEFAULTS if (value := getattr(arguments, name)) is not None
    }
    saved = (folder / CONFIG_FILE).is_file()
    if saved and given:
        raise InputError(f"--{min(given)} is only for a base without a memory; {folder} has one")
    if arguments.base and not saved:
        raise InputError(f"--base is only for a saved model with a memory, got {arguments.model}")
    try:
        if saved:
            return load(folder, arguments.base)
        base = load_base(arguments.model)
    except InputError as error:
        message = str(error).removeprefix("base.model: ")
        raise InputError(message.replace("base=FOLDER", "--base FOLDER")) from None
    return retrofit(base, "window", update="none", **WINDOW_DEFAULTS | given)


def _questions() -> Iterator[str]:
    """Yield the lines typed on a terminal, or those of standard input."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401  lets input() edit a line
        log.info("Each question is answered from the text alone, then forgotten; Ctrl-D ends.")
    while True:
        try:
            question = input("> " if typed else "")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError("standard input: not UTF-8") from None
        if question.strip():
            yield question
