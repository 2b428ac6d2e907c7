"""Commands of `python -m infini`, run in the test's own process."""

import pytest

from infini.cli.main import main


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command prints."""
    main([*words])
    return capsys.readouterr().out


def command_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the error of a command, one line; the exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    return error.removeprefix("error: ").rstrip("\n")
