"""The words of `python -m infini`; what a command needs is imported when it runs."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from infini.console.progress import configure_logging
from infini.console.stage import exit_code
from infini.errors import InputError

CHAT = """Read a long text into a model's memory, of constant size, and answer questions to it or go
on writing. MODEL is a folder that save_pretrained wrote of a model with a memory, or a plain base
(a folder or a hub name), which gets a window, untrained, and pairs of key and value kept behind it.
The tokenizer's chat template is used where it has one; else a prompt goes on where the text ends.
Every question is answered from the same memory. Without --prompt questions are typed, or read from
standard input, one a line."""
PARAMS = "Check a params.yaml, and the base and the text that it names; nothing is computed."


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the words name; the user's mistake is one line, and exits with 2."""
    words = _parser().parse_args(arguments)

    def work() -> None:
        try:
            command = import_module(f"infini.cli.{words.command}")
        except ModuleNotFoundError as error:
            raise InputError(
                f"{words.command} needs {error.name}: pip install 'infini[pipeline]'"
            ) from None
        configure_logging()
        try:
            command.run(words)
            sys.stdout.flush()
        except BrokenPipeError:  # `… | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    if code := exit_code(work):
        sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infini", description="A constant-size memory for pretrained models."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _chat(commands.add_parser("chat", help="read a long text and answer", description=CHAT))
    params = commands.add_parser("params", help="check params.yaml", description=PARAMS)
    params.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", default=Path("params.yaml"),
        help="without it params.yaml",
    )  # fmt: skip
    params.add_argument(
        "--targets", action="store_true", help="print the stages that `make run` asks DVC for"
    )
    return parser


def _chat(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a saved model's folder, or a plain base's")
    add("--file", metavar="TEXT", type=Path, help="UTF-8 text to read, of any length")
    add("--memory", metavar="FILE", type=Path, help="a saved memory to start from")
    add("--save-memory", metavar="FILE", type=Path, help="save the memory after the reading")
    add("--prompt", metavar="TEXT", help="one question, or the beginning of what is written")
    add("--max-new-tokens", metavar="N", type=_count, default=200, help="of an answer (200)")
    add("--base", metavar="MODEL", help="where a saved model's base is, if it has moved")
    plain = parser.add_argument_group("of a plain base")
    plain.add_argument("--window", metavar="W", type=int, help="tokens that are seen (256)")
    plain.add_argument("--sinks", metavar="S", type=int, help="first tokens, always seen (4)")
    plain.add_argument("--kept", metavar="K", type=int, help="pairs a head keeps besides (128)")


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, got {text!r}")
    return int(text)
