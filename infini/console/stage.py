"""The frame of every stage script: how it is started, logging, mistakes in one line."""

import argparse
import inspect
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

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
    code = 0
    try:
        main(*words)
        if parallel:
            from infini import processes  # slow, and not every stage needs it

            processes.leave()
    except InputError as error:
        code = _refuse(str(error))
    except OSError as error:  # a full disk, a folder that cannot be written
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{place}{error.strerror}; the stage's outputs are incomplete: run it again")
    except Stopped as stopped:
        print(f"{stopped}; run again to go on", file=sys.stderr)
        code = 130
    except KeyboardInterrupt:
        code = 130
    if parallel and RANK in os.environ:
        _end_worker(code)
    if code:
        sys.exit(code)


def _words(main: Callable[..., None]) -> list[str]:
    """The command line's words for main's parameters; --help and a wrong number end here."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_module()}", description=sys.modules[main.__module__].__doc__
    )
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument(name, nargs="*")
        elif parameter.default is parameter.empty:
            parser.add_argument(name)
        else:
            parser.add_argument(name, nargs="?", help=f"without it {parameter.default}")
    parser.parse_args()
    return sys.argv[1:]


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
