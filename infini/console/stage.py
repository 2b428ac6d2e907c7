"""The frame of every script: how it is started, its help, logging, mistakes in one line."""

import argparse
import ast
import inspect
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from infini.console.progress import configure_logging
from infini.console.signals import Stopped
from infini.errors import InputError

LAUNCH = "INFINI_LAUNCH"
RANK = "RANK"  # what every launcher tells the processes it starts


def run(main: Callable[..., None], *, parallel: bool = False) -> None:
    """Call main with the command line's words; any failure exits non-zero, the user's with 2.

    parallel: the stage computes in all the processes that $INFINI_LAUNCH (say "accelerate launch
    --num_processes 2") starts. An environment variable, so that DVC sees the same command.
    """
    words = _words(main)
    if parallel and os.environ.get(LAUNCH) and RANK not in os.environ:
        _launch(shlex.split(os.environ[LAUNCH]))
    configure_logging()

    def work() -> None:
        main(*words)
        if parallel:
            from infini import processes  # slow, and not every stage needs it

            processes.leave()

    code = exit_code(work, "; the stage's outputs are incomplete: run it again")
    if parallel and RANK in os.environ:
        _end_worker(code)
    if code:
        sys.exit(code)


def exit_code(work: Callable[[], None], incomplete: str = "") -> int:
    """0 when `work` is done; 2 for the user's mistake, told in one line; 130 where it is stopped.

    incomplete: what a full disk, or a folder that cannot be written, leaves behind.
    """
    try:
        work()
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{place}{error.strerror}{incomplete}")
    except Stopped as stopped:
        print(f"{stopped}; run again to go on", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    return 0


def help_first(folder: Path) -> None:
    """Of `python -m stages.x --help`, while x is looked for in `folder`: print it and exit.

    It is read off the script's source, since the script itself waits for its imports.
    """
    if sys.argv[0] != "-m" or not {"-h", "--help"} & set(sys.argv[1:]):
        return
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    file = folder / f"{module.rpartition('.')[2]}.py"
    if file.is_file():
        script = ast.parse(file.read_text(encoding="utf-8"))
        _parser(module, ast.get_docstring(script), _signature_in(script)).parse_args()


def quiet_when_stopped() -> None:
    """From here on Ctrl-C ends the process without a traceback."""

    def tell(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped by SIGINT; run again to go on", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = tell


def _signature_in(script: ast.Module) -> inspect.Signature:
    """Of main, as far as it has words: names, literal defaults, Literal annotations."""
    functions = (node for node in script.body if isinstance(node, ast.FunctionDef))
    words = next(node.args for node in functions if node.name == "main")
    defaults: list[object] = [ast.literal_eval(node) for node in words.defaults]
    required = len(words.args) - len(defaults)
    values = [inspect.Parameter.empty] * required + defaults
    parameters = [
        inspect.Parameter(
            word.arg,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=value,
            annotation=_choice(word),
        )
        for word, value in zip(words.args, values, strict=True)
    ]
    return inspect.Signature(parameters)


def _choice(word: ast.arg) -> Any:
    """Of `Literal["a", "b"]` just that; of any other annotation none."""
    match word.annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return Literal[ast.literal_eval(values)]
    return inspect.Parameter.empty


def _words(main: Callable[..., None]) -> list[str]:
    """The command line's words for main's parameters; --help and a wrong number end here."""
    description = sys.modules[main.__module__].__doc__
    _parser(_module(), description, inspect.signature(main)).parse_args()
    return sys.argv[1:]


def _parser(
    module: str, description: str | None, signature: inspect.Signature
) -> argparse.ArgumentParser:
    """Of a script with such a main."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument(name, nargs="*")
        elif parameter.default is parameter.empty:
            parser.add_argument(name)
        else:
            choices = get_args(parameter.annotation)
            about = [" or ".join(choices)] * bool(choices) + [f"without it {parameter.default}"]
            parser.add_argument(
                name,
                nargs="?",
                default=parameter.default,
                choices=choices or None,
                metavar=name,
                help="; ".join(about),
            )
    return parser


def _module() -> str:
    """What was started: stages run as `python -m stages.…`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def _end_worker(code: int) -> None:
    """End this process at once, everything printed.

    Threads of torch's process group may still run (under FSDP even after it is destroyed), and one
    that reaches for Python's lock while the interpreter shuts down aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refuse(message: str) -> int:
    """Say it in one line; the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _launch(launcher: list[str]) -> None:
    """Become the launcher of this very command."""
    import torch  # slow, and not every stage needs it

    if launcher[:2] == ["accelerate", "launch"] and not torch.accelerator.is_available():
        # Without accelerators it starts one process, whatever --num_processes says, unless
        # it is told to use its launcher for many.
        launcher += ["--multi_gpu"] if "--use_fsdp" not in launcher else []
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.execvp(launcher[0], [*launcher, "-m", _module(), *sys.argv[1:]])
