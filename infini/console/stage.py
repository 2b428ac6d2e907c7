"""Entry point of a stage's script: arguments, logging, launcher, and errors in one line."""

import argparse
import fcntl
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from infini.console.progress import configure_logging
from infini.console.signals import Stopped
from infini.errors import InputError
from infini.paths import LOCKS

LAUNCH = "INFINI_LAUNCH"
RANK = "RANK"  # every launcher sets it for the processes that it starts


def run_stage(main: Callable[..., None], *, parallel: bool = False) -> None:
    """Call `main` with the arguments of the command line; exit non-zero if it fails.

    Args:
        main: the stage; its parameters are the script's arguments, those with a default are
            optional, a `Literal` lists the choices.
        parallel: run in all the processes that $INFINI_LAUNCH starts, such as "accelerate launch
            --num_processes 2". It is an environment variable, so that DVC sees one command.
    """
    arguments = _parser(main).parse_args()
    if parallel and os.environ.get(LAUNCH) and RANK not in os.environ:
        _launch(shlex.split(os.environ[LAUNCH]))
    configure_logging()

    def work() -> None:
        with _stage_lock():
            main(**vars(arguments))
        if parallel:
            from infini import processes  # imports torch, which not every stage needs

            processes.end_processes()

    code = exit_code(work, "; the stage's outputs are incomplete: run it again")
    if parallel and RANK in os.environ:
        # Threads of torch's process group may outlive it (under FSDP at least), and one that asks
        # for Python's lock while the interpreter shuts down aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


@contextmanager
def _stage_lock() -> Iterator[None]:
    """Hold the lock of this command in this folder; InputError if another process has it.

    Two runs at once would write the same checkpoints and outputs. The system frees a dead
    process's lock.
    """
    if os.environ.get(RANK, "0") != "0":
        yield
        return
    command = " ".join([_module(), *sys.argv[1:]])
    name = re.sub(r"[^\w.-]", "-", command)[:100]
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{command}: another process runs it in this folder; wait for its end"
            ) from None
        yield


def exit_code(work: Callable[[], None], incomplete: str = "") -> int:
    """Run `work` and return the exit code of a command.

    Args:
        work: the command.
        incomplete: appended to the message of a failed read or write.

    Returns:
        0; 2 after an InputError or OSError, which is printed as one line; 130 after Ctrl-C.
    """
    try:
        work()
    except InputError as error:
        return _print_error(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _print_error(f"{place}{error.strerror}{incomplete}")
    except Stopped as stopped:
        print(f"{stopped}; run again to continue", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    return 0


def exit_quietly_on_ctrl_c() -> None:
    """Print one line instead of a traceback if Ctrl-C ends the process, even during imports."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped by SIGINT; run again to continue", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def _parser(main: Callable[..., None]) -> argparse.ArgumentParser:
    description = sys.modules[main.__module__].__doc__
    parser = argparse.ArgumentParser(prog=f"python -m {_module()}", description=description)
    for name, parameter in inspect.signature(main).parameters.items():
        choices = get_args(parameter.annotation) or None
        if parameter.default is parameter.empty:
            parser.add_argument(name, choices=choices)
        else:
            parser.add_argument(
                name,
                nargs="?",
                choices=choices,
                default=parameter.default,
                help="default: %(default)s",
            )
    return parser


def _module() -> str:
    """Return the name of the module that was started with `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def _print_error(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _launch(launcher: list[str]) -> None:
    """Replace this process by the launcher of the same command."""
    import torch  # slow to import

    if launcher[:2] == ["accelerate", "launch"] and not torch.accelerator.is_available():
        # Without an accelerator it ignores --num_processes unless --multi_gpu is set.
        launcher += ["--multi_gpu"] if "--use_fsdp" not in launcher else []
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.execvp(launcher[0], [*launcher, "-m", _module(), *sys.argv[1:]])
