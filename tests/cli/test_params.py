"""`params`: what is said of a params.yaml."""

from pathlib import Path

import pytest

from infini.cli.main import main
from toy import read_params, write_params


def test_a_valid_file_is_said_to_be_with_its_versions(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["params"])
    assert capsys.readouterr().out == "params.yaml: valid; versions: v1, v2, v4, v3, v5\n"
    write_params(read_params() | {"replacements": {}, "adapters": {}})
    main(["params"])
    assert capsys.readouterr().out == "params.yaml: valid; versions: none\n"


def test_another_files_paths_are_those_of_its_folder(
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
    assert capsys.readouterr().err.startswith("error: ../study.yaml: data.corpus: ")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, "error: wrong.yaml: not found; run from"),
        ("seed: -1", "error: wrong.yaml: seed: "),
        ("seed: 1\nseed: 2", "error: wrong.yaml: seed: is there twice"),
        ("seed: [", "error: wrong.yaml: not YAML: "),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(
    project: Path, content: str | None, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("wrong.yaml").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["params", "wrong.yaml"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith(shown)
    assert said.err.count("\n") == 1
