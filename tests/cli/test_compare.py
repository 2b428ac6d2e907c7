"""`compare`: printed and kept; its table is `infini.report.revisions`'s."""

from pathlib import Path

import pytest

from infini.cli import compare as module
from infini.cli.main import main


def test_the_table_is_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "compare", lambda a, b: f"{a} | {b}\n")
    main(["compare", "HEAD~1", "origin/main"])
    file = "reports/revisions/HEAD~1..origin_main.md"
    assert capsys.readouterr().out == f"HEAD~1 | origin/main\n\nwritten to {file}\n"
    assert Path(file).read_text() == "HEAD~1 | origin/main\n"


def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "HEAD", "HEAD~1"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: HEAD: no such revision or experiment")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
