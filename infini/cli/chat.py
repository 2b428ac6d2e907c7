"""`chat`: a long text into a model's memory, and questions to it."""

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
from infini.model.base import load_base, load_tokenizer, weights_fingerprint
from infini.model.loading import load
from infini.model.retrofit import retrofit
from infini.model.serialization import CONFIG_FILE, read_config

log = logging.getLogger(__name__)

WINDOW = {"window": 256, "sinks": 4, "retained": 128}  # of a plain base, where nothing is asked for


def run(words: Namespace) -> None:
    """Read what there is to read, save it where asked to, answer; InputError for what cannot be."""
    _check_files(words)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries: the error says it
    model = _model(words)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    base = model.infini_config["base"]
    conversation = Conversation(model, load_tokenizer(base["model"], base["revision"]))
    if words.memory:
        conversation.load(words.memory)
    if words.file:
        log.info("%s: %s tokens read", words.file, f"{conversation.read(words.file):,}")
    if words.save_memory:
        conversation.save(words.save_memory)
        log.info(
            "%s: the memory, %s bytes", words.save_memory, f"{words.save_memory.stat().st_size:,}"
        )
    for question in _questions() if words.prompt is None else [words.prompt]:
        conversation.answer(question, words.max_new_tokens)


def _check_files(words: Namespace) -> None:
    """InputError for files that are not there, before anything is loaded."""
    for file in (words.file, words.memory):
        if file and not file.is_file():
            raise InputError(f"{file}: no such file")
    if words.save_memory and not (words.file or words.memory):
        raise InputError("--save-memory: nothing is read: --file names a text")
    if words.save_memory and words.save_memory.is_dir():
        raise InputError(f"{words.save_memory}: is a folder, a file's name is needed")


def _model(words: Namespace) -> PreTrainedModel:
    """A saved model with a memory; or a plain base, given a window and pairs kept behind it."""
    folder = Path(words.model).expanduser()
    asked = {name: getattr(words, name) for name in WINDOW if getattr(words, name) is not None}
    if (folder / CONFIG_FILE).is_file():
        if asked:
            raise InputError(f"--{min(asked)}: for a plain base, {folder} has its own")
        return _saved(folder, words.base)
    if words.base:
        raise InputError(f"--base: for a saved model with a memory, {words.model} is none")
    return retrofit(_base(words.model), "window", update="none", **WINDOW | asked)


def _saved(folder: Path, base: str | None) -> PreTrainedModel:
    """What save_pretrained wrote, on the base recorded there or the one given."""
    if base is not None:
        return load(folder, _base(base))
    recorded = read_config(folder)["base"]
    try:
        found = _base(str(recorded.get("model")), recorded.get("revision"))
    except InputError as error:
        raise InputError(f"{folder}: its base: {error}; --base says where it is now") from None
    if weights_fingerprint(found) != recorded["fingerprint"]:
        raise InputError(
            f"{folder}: made for another base than {recorded['model']!r} here: --base names it"
        )
    return load(folder, found)


def _base(name: str, revision: str | None = None) -> PreTrainedModel:
    """A base without a memory; InputError for what is neither its folder nor a hub name."""
    try:
        return load_base(name, revision)
    except InputError as error:
        raise InputError(str(error).removeprefix("base.model: ")) from None


def _questions() -> Iterator[str]:
    """The lines typed on a terminal, or of standard input, until it ends."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401  lets input() edit a line
        log.info("Each question is answered from what was read, and forgotten; Ctrl-D ends.")
    while True:
        try:
            question = input("> " if typed else "")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError("standard input: not UTF-8") from None
        if question.strip():
            yield question
