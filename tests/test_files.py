"""Readers and writers of JSON, YAML and tables, and their errors."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from infini.errors import InputError
from infini.files import flatten, read_json, read_table, read_yaml, write_json
from infini.paths import Version


def test_write_json_and_read_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    write_json(file, {"a": {"b": 1.5}, "name": "σ"})
    assert read_json(file, "a") == {"a": {"b": 1.5}, "name": "σ"}
    with pytest.raises(InputError, match=r"a.json: no x, y in it; run the stage"):
        read_json(file, "a", "x", "y")
    with pytest.raises(InputError, match=r"a.json: a figure is not finite, nothing is written"):
        write_json(file, {"a": float("nan")})
    assert read_json(file)["name"] == "σ"
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not found"), ("{", "not JSON"), ("[1]", "must hold a JSON object, got a list")],
)
def test_read_json_rejects_other_files(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=rf"a.json: {message}"):
        read_json(file)


def test_read_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    assert read_yaml(file) == {}
    file.write_text("a: {b: [1, 2]}")
    assert read_yaml(file) == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_read_table(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with pytest.raises(InputError, match=rf"{name}: not found"):
        read_table(file, "x")
    table = pd.DataFrame({"x": [1.0, None], "series": ["a", "b"]})
    table.to_csv(file, index=False) if name.endswith("csv") else table.to_parquet(file)
    pd.testing.assert_frame_equal(read_table(file, "series"), table)
    with pytest.raises(InputError, match=rf"{name}: no column y; run the stage"):
        read_table(file, "series", "y")
    with pytest.raises(InputError, match=rf"{name}: x has values that are not finite numbers"):
        read_table(file, "x")
    file.write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}: no readable table"):
        read_table(file, "x")


def test_read_table_keeps_names_that_pandas_takes_for_missing(tmp_path: Path) -> None:
    file = tmp_path / "costs.csv"
    table = pd.DataFrame({"version": ["nan", "null", "NA", "v1"], "x": [1.0, 2.0, 3.0, None]})
    table.to_csv(file, index=False)
    pd.testing.assert_frame_equal(read_table(file, "version"), table)


def test_flatten_joins_keys_by_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a.b.c": 1, "a.d": 2, "e": 3}


def test_files_imports_no_pandas() -> None:
    code = "import sys, infini.files; assert not {'pandas', 'ruamel'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_of_a_version() -> None:
    version = Version("v2", 7)
    assert [
        str(path)
        for path in (
            version.model_folder("finetune"),
            version.training_record("control"),
            version.training_curve("distill"),
            version.metrics,
            version.curves,
            version.losses,
        )
    ] == [
        "data/models/v2/finetune/seed7",
        "reports/training/v2/control.json",
        "reports/training/v2/distill.csv",
        "reports/metrics/v2.json",
        "reports/curves/v2.csv",
        "data/evaluation/v2/losses.parquet",
    ]
    assert version.checkpoint_name("distill") == "v2-distill-seed-7"
