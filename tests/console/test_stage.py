"""The frame of a stage's script: its words, its exit codes, its launcher."""

import ast
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch

from infini.console import stage
from infini.console.signals import Stopped
from infini.console.stage import help_first, run
from infini.errors import InputError

ROOT = Path(stage.__file__).parents[2]
TWO = "accelerate launch --num_processes 2"


class Became(Exception):
    """What the process would have become."""


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Started as `python -m stages.toy v1 more` on a machine without accelerators."""

    def become(program: str, words: list[str]) -> None:
        raise Became(program, *words)

    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec("stages.toy", None)
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["toy.py", "v1", "more"])
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "execvp", become)
    monkeypatch.setattr(os, "_exit", lambda code: calls.append(f"exit {code}"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(stage, "configure_logging", lambda: calls.append("logging"))
    return calls


def fail(error: BaseException) -> None:
    raise error


def test_a_stage_gets_the_command_lines_words_once_logging_is_set_up(
    configured: list[str],
) -> None:
    run(lambda *words: configured.extend(words))
    assert configured == ["logging", "v1", "more"]


@pytest.mark.parametrize(
    ("argv", "code", "shown"),
    [
        (["--help"], 0, "usage: python -m stages.toy [-h] version [step]"),
        ([], 2, "the following arguments are required: version"),
        (["v1", "distill", "more"], 2, "unrecognized arguments: more"),
        (["v1", "finetune"], 2, "argument step: invalid choice: 'finetune' (choose from "),
    ],
)
def test_help_and_a_wrong_number_of_words_end_before_any_work(
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
        run(main, parallel=True)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert shown in said.out + said.err
    if not code:
        assert "The frame of a stage's script" in said.out  # main's module says what it does
    assert not configured


@pytest.mark.parametrize("file", sorted((ROOT / "stages").glob("[a-z]*.py")), ids=lambda f: f.stem)
def test_every_stages_help_is_its_docstring_and_waits_for_nothing(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"stages.{file.stem}", "--help"],
        cwd=ROOT, env={"COLUMNS": "400"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    script = ast.parse(file.read_text())
    (main,) = (n.args for n in script.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    first = len(main.args) - len(main.defaults)
    words = [a.arg if i < first else f"[{a.arg}]" for i, a in enumerate(main.args)]
    usage = " ".join([f"usage: python -m stages.{file.stem} [-h]", *words])
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, usage)
    assert " ".join((ast.get_docstring(script) or "none").split()) in done.stdout
    assert "infini.console.stage" in done.stderr
    assert "torch" not in done.stderr


def test_no_other_words_and_no_other_start_are_help(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "toy.py").write_text("def main(version): ...")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "stages.toy", "--help"])
    for argv in (["-m", "v1"], ["toy.py", "--help"]):
        monkeypatch.setattr(sys, "argv", argv)
        help_first(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    help_first(tmp_path / "elsewhere")  # Python says that there is none
    with pytest.raises(SystemExit):
        help_first(tmp_path)


def test_the_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda *_: fail(InputError("params.yaml: a.b: wrong")))
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: params.yaml: a.b: wrong\n")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            OSError(28, "No space left on device", "data/x.json"),
            "data/x.json: No space left on dev",
        ),
        (PermissionError(13, "Permission denied", "data/y"), "data/y: Permission denied"),
        (
            OSError(5, "Input/output error"),
            "error: Input/output error; the stage's outputs are inc",
        ),
    ],
)
def test_a_full_disk_and_a_read_only_folder_are_one_line(
    error: OSError, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda *_: fail(error))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert shown in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Stopped("v1: saved in epoch 2"), "v1: saved in epoch 2; run again to go on\n"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_an_interrupted_stage_ends_with_130(
    error: BaseException, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda *_: fail(error))
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", shown)


def test_our_own_mistake_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda *_: fail(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        ("InputError('wrong')", 2, "error: wrong\n"),
        ("Stopped('saved')", 130, "saved; run again to go on\n"),
        ("KeyboardInterrupt", 130, ""),
    ],
)
@pytest.mark.parametrize("launched", [False, True])
def test_what_a_shell_sees(
    tmp_path: Path, error: str, code: int, shown: str, launched: bool
) -> None:
    """One of several processes ends without the interpreter's shutdown, where threads crash."""
    (tmp_path / "toy.py").write_text(
        "import atexit\n"
        "from infini.console.signals import Stopped\n"
        "from infini.console.stage import run\n"
        "from infini.errors import InputError\n"
        "def main(*words):\n"
        "    print('said')\n"
        f"    raise {error}\n"
        "atexit.register(print, 'shut down')\n"
        "run(main, parallel=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "toy"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)} | ({"RANK": "0"} if launched else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    said = "said\n" if launched else "said\nshut down\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, said, shown)


@pytest.mark.parametrize(
    ("launch", "accelerator", "added"),
    [
        (TWO, False, ["--multi_gpu"]),  # or it would start one process
        (TWO, True, []),
        (f"{TWO} --use_fsdp", False, []),
        (f"{TWO} --use_fsdp", True, []),
        ("torchrun --nproc_per_node 2", False, []),
        ("'a launcher' --name 'of mine'", False, []),
    ],
)
def test_a_parallel_stage_becomes_its_launcher(
    monkeypatch: pytest.MonkeyPatch,
    configured: list[str],
    launch: str,
    accelerator: bool,
    added: list[str],
) -> None:
    os.environ["INFINI_LAUNCH"] = launch
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    with pytest.raises(Became) as became:
        run(lambda *words: configured.extend(words), parallel=True)
    program, *words = became.value.args
    own = launch.split() if "'" not in launch else ["a launcher", "--name", "of mine"]
    assert program == own[0]
    assert words == [*own, *added, "-m", "stages.toy", "v1", "more"]
    on_cpu = launch.startswith("accelerate") and not accelerator
    assert os.environ.get("ACCELERATE_USE_CPU") == ("true" if on_cpu else None)
    assert not configured


@pytest.mark.parametrize(
    ("environment", "parallel"),
    [
        ({"INFINI_LAUNCH": TWO}, False),
        ({"INFINI_LAUNCH": ""}, True),
        ({}, True),
    ],
)
def test_nothing_is_launched(
    configured: list[str], environment: dict[str, str], parallel: bool
) -> None:
    os.environ.update(environment)
    run(lambda *words: configured.extend(words), parallel=parallel)
    assert configured == ["logging", "v1", "more"]


def test_a_process_that_the_launcher_started_ends_at_once(configured: list[str]) -> None:
    os.environ.update({"INFINI_LAUNCH": TWO, "RANK": "0"})
    run(lambda *words: configured.extend(words), parallel=True)
    assert configured == ["logging", "v1", "more", "exit 0"]


def test_ctrl_c_while_a_script_imports_is_no_traceback() -> None:
    code = (
        "import stages, os, signal, time; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may ignore it
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -2
    assert done.stderr == "stopped by SIGINT; run again to go on\n"
