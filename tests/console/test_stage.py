"""Entry point of a stage's script: arguments, exit codes, launcher."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch

from infini.console import stage
from infini.console.signals import Stopped
from infini.console.stage import run_stage
from infini.errors import InputError

ROOT = Path(stage.__file__).parents[2]
TWO = "accelerate launch --num_processes 2"
INCOMPLETE = "; the stage's outputs are incomplete: run it again"


class Replaced(Exception):
    """Raised in place of replacing the process; has the command."""


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start as `python -m stages.toy v1 more` on a machine without accelerators."""

    def replace(program: str, words: list[str]) -> None:
        raise Replaced(program, *words)

    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec("stages.toy", None)
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["toy.py", "v1", "more"])
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "execvp", replace)
    monkeypatch.setattr(os, "_exit", lambda code: calls.append(f"exit {code}"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(stage, "configure_logging", lambda: calls.append("logging"))
    return calls


def failing(error: BaseException) -> Callable[..., None]:
    """Return a stage that raises an error."""

    def main(version: str, step: str) -> None:
        raise error

    return main


def record(calls: list[str]) -> Callable[..., None]:
    """Return a stage that records its arguments."""

    def main(version: str, step: str) -> None:
        calls.extend((version, step))

    return main


@pytest.mark.parametrize(
    ("argv", "code", "shown"),
    [
        (["--help"], 0, "usage: python -m stages.toy [-h] version [{distill}]"),
        ([], 2, "the following arguments are required: version"),
        (["v1", "distill", "more"], 2, "unrecognized arguments: more"),
        (["v1", "finetune"], 2, "argument step: invalid choice: 'finetune' (choose from "),
    ],
)
def test_run_stage_rejects_wrong_arguments_before_any_work(
    argv: list[str],
    code: int,
    shown: str,
    configured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(version: str, step: Literal["distill"] = "distill") -> None:
        configured.append(version)

    monkeypatch.setattr(sys, "argv", ["toy.py", *argv])
    with pytest.raises(SystemExit) as ended:
        run_stage(main, parallel=True)
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert shown in printed.out + printed.err
    if not code:
        assert "Entry point of a stage's script" in printed.out
    assert not configured


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (InputError("params.yaml: a.b: wrong"), 2, "error: params.yaml: a.b: wrong\n"),
        (OSError(28, "No space", "data/x"), 2, f"error: data/x: No space{INCOMPLETE}\n"),
        (PermissionError(13, "Denied", "data/y"), 2, f"error: data/y: Denied{INCOMPLETE}\n"),
        (OSError(5, "Input/output error"), 2, f"error: Input/output error{INCOMPLETE}\n"),
        (Stopped("v1: saved in epoch 2"), 130, "v1: saved in epoch 2; run again to continue\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_stage(failing(error))
    assert ended.value.code == code
    assert capsys.readouterr() == ("", printed)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage(failing(ZeroDivisionError()))


@pytest.mark.parametrize("launched", [False, True])
def test_exit_code_of_process(tmp_path: Path, launched: bool) -> None:
    """A launched process ends without the interpreter's shutdown."""
    (tmp_path / "toy.py").write_text(
        "import atexit\n"
        "from infini.console.stage import run_stage\n"
        "from infini.errors import InputError\n"
        "def main():\n"
        "    print('output')\n"
        "    raise InputError('wrong')\n"
        "atexit.register(print, 'shut down')\n"
        "run_stage(main, parallel=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "toy"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)} | ({"RANK": "0"} if launched else {}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = "output\n" if launched else "output\nshut down\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, output, "error: wrong\n")


@pytest.mark.parametrize(
    ("launch", "accelerator", "added"),
    [
        (TWO, False, ["--multi_gpu"]),
        (TWO, True, []),
        (f"{TWO} --use_fsdp", False, []),
        (f"{TWO} --use_fsdp", True, []),
        ("torchrun --nproc_per_node 2", False, []),
        ("'a launcher' --name 'of mine'", False, []),
    ],
)
def test_parallel_stage_is_replaced_by_its_launcher(
    monkeypatch: pytest.MonkeyPatch,
    configured: list[str],
    launch: str,
    accelerator: bool,
    added: list[str],
) -> None:
    os.environ["INFINI_LAUNCH"] = launch
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    with pytest.raises(Replaced) as replaced:
        run_stage(record(configured), parallel=True)
    program, *words = replaced.value.args
    own = launch.split() if "'" not in launch else ["a launcher", "--name", "of mine"]
    assert program == own[0]
    assert words == [*own, *added, "-m", "stages.toy", "v1", "more"]
    on_cpu = launch.startswith("accelerate") and not accelerator
    assert os.environ.get("ACCELERATE_USE_CPU") == ("true" if on_cpu else None)
    assert not configured


@pytest.mark.parametrize(
    ("environment", "parallel", "end"),
    [
        ({"INFINI_LAUNCH": TWO}, False, []),
        ({"INFINI_LAUNCH": ""}, True, []),
        ({}, True, []),
        ({"INFINI_LAUNCH": TWO, "RANK": "0"}, True, ["exit 0"]),  # started by the launcher
    ],
)
def test_stage_runs_in_this_process(
    configured: list[str], environment: dict[str, str], parallel: bool, end: list[str]
) -> None:
    os.environ.update(environment)
    run_stage(record(configured), parallel=parallel)
    assert configured == ["logging", "v1", "more", *end]


def test_ctrl_c_during_imports_prints_no_traceback() -> None:
    code = (
        "import stages, os, signal, time; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may ignore it
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -2
    assert done.stderr == "stopped by SIGINT; run again to continue\n"


def test_run_stage_runs_once_at_a_time(
    configured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def main(version: str, step: str) -> None:
        configured.append(step)
        if len(configured) < 3:
            with pytest.raises(SystemExit) as ended:
                run_stage(main)  # the same command, while it runs
            assert ended.value.code == 2
            monkeypatch.setattr(sys, "argv", ["toy.py", "v1", "other"])
            run_stage(main)

    run_stage(main)
    assert configured == ["logging", "more", "logging", "logging", "other"]
    assert capsys.readouterr().err == (
        "error: stages.toy v1 more: another process runs it in this folder; wait for its end\n"
    )
    monkeypatch.setattr(sys, "argv", ["toy.py", "v1", "more"])
    run_stage(main)  # it has ended
    assert configured[-1] == "more"
