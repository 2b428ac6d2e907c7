"""Arguments of `python -m infini`; a command's module is imported when it runs."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from infini.console.progress import configure_logging
from infini.console.stage import exit_code
from infini.errors import InputError

CHAT = """Read a long text into a model's memory of constant size, and answer questions about it or
continue it. MODEL is a folder with a retrofitted model that save_pretrained wrote, or a base (a
folder or a hub name), which gets an untrained window with sinks and retained key-value pairs. The
tokenizer's chat template is used if there is one; otherwise a prompt continues the text. Every
question is answered from the same memory. Without --prompt, questions are typed, or read from
standard input, one a line."""
EVALUATE = """Score text files with a model, in nats per token and perplexity, beside what its base
does without training: with full attention, and with a sliding window of as many state bytes. MODEL
is a folder with a retrofitted model that save_pretrained wrote, or a base (a folder or a hub name),
which is scored with full attention and, with --window, with that window."""
BENCH = """Say which retention policy to take for a model, its texts and a number of bytes. Each
policy gets as many retained key-value pairs as the bytes pay for, beside the plain sliding window
of these bytes and full attention. Nothing is trained. MODEL is a base without a memory, a folder or
a hub name. The table and a plot are written to --out."""
NEW_STUDY = """Write studies/NAME/params.yaml: a minimal file for a base and a text of your own,
with one version, a window and its memory. `make study STUDY=NAME` runs it."""
PARAMS = "Check a params.yaml, and the base and the corpus that it names; nothing is computed."


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the user's mistake is printed as one line and exits with 2.

    Args:
        arguments: the command and its options; None: those of the process.
    """
    parsed = _parser().parse_args(arguments)

    def work() -> None:
        name = parsed.command.replace("-", "_")
        try:
            module = import_module(f"infini.cli.{name}")
        except ModuleNotFoundError as error:
            raise InputError(
                f"{parsed.command} needs {error.name}: pip install 'infini[pipeline]'"
            ) from None
        configure_logging()
        try:
            getattr(module, f"run_{name}")(parsed)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of a pipe such as `… | head` has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    if code := exit_code(work):
        sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infini", description="A constant-size memory for pretrained models."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_chat(commands.add_parser("chat", help="read a long text and answer", description=CHAT))
    _add_evaluate(commands.add_parser("evaluate", help="score text files", description=EVALUATE))
    _add_bench(commands.add_parser("bench", help="choose a retention policy", description=BENCH))
    params = commands.add_parser("params", help="check params.yaml", description=PARAMS)
    params.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", default=Path("params.yaml"),
        help="default: params.yaml",
    )  # fmt: skip
    params.add_argument(
        "--targets", action="store_true", help="print the stages that `make run` asks DVC for"
    )
    study = commands.add_parser("new-study", help="write a study's folder", description=NEW_STUDY)
    study.add_argument("name", metavar="NAME", help="name of the folder in studies/")
    study.add_argument(
        "--base", metavar="MODEL", required=True, help="a folder of save_pretrained, or a hub name"
    )
    study.add_argument(
        "--text", metavar="CORPUS", required=True,
        help="a folder of .txt or .jsonl files, sotu, kjv, or a hub dataset",
    )  # fmt: skip
    return parser


def _add_chat(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a saved model, or a base")
    add("--file", metavar="TEXT", type=Path, help="UTF-8 text to read, of any length")
    add("--memory", metavar="FILE", type=Path, help="a saved memory to start from")
    add("--save-memory", metavar="FILE", type=Path, help="save the memory after the reading")
    add("--prompt", metavar="TEXT", help="one question, or the text to continue")
    add("--max-new-tokens", metavar="N", type=_count, default=200, help="per answer (200)")
    add("--base", metavar="MODEL", help="where a saved model's base is, if it has moved")
    add("--system", metavar="TEXT", help="system prompt, for a tokenizer with a chat template")
    add(
        "--pin-system", action=argparse.BooleanOptionalAction,
        help="retain the system prompt behind the window at any length (where it fits)",
    )  # fmt: skip
    base = parser.add_argument_group("options for a base without a memory")
    base.add_argument("--window", metavar="W", type=int, help="tokens of the window (256)")
    base.add_argument("--sinks", metavar="S", type=int, help="attention sinks (4)")
    base.add_argument("--retained", metavar="K", type=int, help="retained pairs per head (128)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a saved model, or a base")
    add(
        "--file", metavar="TEXT", type=Path, nargs="+", required=True,
        help="UTF-8 texts of any length, or folders of .txt files",
    )  # fmt: skip
    add("--base", metavar="MODEL", help="where a saved model's base is, if it has moved")
    add("--window", metavar="W", type=int, help="tokens of a base's window")
    add("--sinks", metavar="S", type=int, default=4, help="attention sinks of the window (4)")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", required=True, help="a base, a folder or a hub name")
    add(
        "--text", metavar="TEXT", type=Path, nargs="+", required=True,
        help="UTF-8 texts, or folders of .txt files",
    )  # fmt: skip
    add("--bytes", metavar="N,N", default="4M,8M,16M", help="sizes of a cache (4M,8M,16M)")
    add("--policies", metavar="A,B", help="names of retention policies, or all; default: five")
    add("--saved", metavar="FOLDER", nargs="+", default=[], help="saved models over this base")
    add("--window", metavar="W", type=int, help="tokens of the window (by size of the cache)")
    add("--sinks", metavar="S", type=int, default=4, help="attention sinks (4)")
    add("--max-tokens", metavar="N", type=_count, default=2048, help="read of each text (2048)")
    add(
        "--fit-text", metavar="TEXT", type=Path, nargs="+", default=[],
        help="texts to fit learned, learned_no_attention, expected_attention and q_filter to",
    )  # fmt: skip
    add("--out", metavar="FOLDER", type=Path, default=Path("bench"), help="results (bench)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer ≥ 1, got {text!r}")
    return int(text)
