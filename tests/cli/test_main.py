"""Arguments of `python -m infini`: help without the pipeline, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from infini.cli import main as module
from infini.cli.main import main

ROOT = Path(module.__file__).parents[2]


@pytest.mark.parametrize("command", [[], ["chat"], ["evaluate"], ["params"]])
def test_help_imports_nothing_of_the_pipeline(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "infini", *command, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith(" ".join(["usage: python -m infini", *command]) + " [-h]")
    assert "infini.cli.main" in done.stderr
    for package in (" pydantic", " pandas", " dvc"):
        assert package not in done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["chatt"], "invalid choice: 'chatt'"),
        (["chat", "m", "--max-new-tokens", "0"], "must be an integer ≥ 1, got '0'"),
        (["evaluate", "m"], "the following arguments are required: --file"),
        (["chat", "m", "--window", "x"], "argument --window: invalid int value: 'x'"),
    ],
)
def test_invalid_arguments_exit_with_2(
    words: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert shown in capsys.readouterr().err


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr(module, "import_module", without)
    with pytest.raises(SystemExit) as ended:
        main(["params"])
    assert ended.value.code == 2
    wanted = "error: params needs pydantic: pip install 'infini[pipeline]'\n"
    assert capsys.readouterr().err == wanted


def test_broken_pipe_is_no_error() -> None:
    code = (
        "import sys, types; from infini.cli import main as m; many = lambda _: print('x' * 10**6); "
        "m.import_module = lambda name: types.SimpleNamespace(run_params=many); m.main(['params'])"
    )
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -c 3', sys.executable, code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "xxx", "")
