"""Command `params`: valid and invalid files."""

from pathlib import Path

import pytest

from infini.cli.main import main
from toy import read_params, write_params


def test_params_lists_versions(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["params"])
    assert capsys.readouterr().out == "params.yaml: valid; versions: v1, v2, v4, v3, v5\n"
    write_params(read_params() | {"replacements": {}, "adapters": {}})
    main(["params"])
    assert capsys.readouterr().out == "params.yaml: valid; versions: none\n"


def test_params_resolves_paths_in_the_files_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_params()
    write_params(content | {"data": content["data"] | {"corpus": "./text"}})
    Path("params.yaml").rename("study.yaml")
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    main(["params", "../study.yaml"])
    assert capsys.readouterr().out.startswith("../study.yaml: valid")
    (project / "text").rename(project / "gone")
    with pytest.raises(SystemExit):
        main(["params", "../study.yaml"])
    assert capsys.readouterr().err.startswith("error: ../study.yaml: data.corpus must be ")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, "error: wrong.yaml: not found; run from"),
        ("seed: -1", "error: wrong.yaml: seed: "),
        ("seed: 1\nseed: 2", "error: wrong.yaml: seed: duplicate key"),
        ("seed: [", "error: wrong.yaml: not YAML: "),
    ],
)
def test_params_rejects_invalid_file_in_one_line(
    project: Path, content: str | None, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("wrong.yaml").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["params", "wrong.yaml"])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith(shown)
    assert printed.err.count("\n") == 1
