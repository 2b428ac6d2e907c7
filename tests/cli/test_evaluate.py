"""Command `evaluate`: files and folders, the Markdown table, errors in one line."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers import PreTrainedModel

import infini
from cli.commands import command_error, run_command
from infini.cli.evaluate import as_markdown
from toy import sentence


@pytest.fixture(autouse=True)
def folder(folder_with_base: None) -> None:
    """A folder with a base and two texts."""
    Path("texts/inner").mkdir(parents=True)
    Path("texts/one.txt").write_text(sentence(40, 3))
    Path("texts/inner/two.TXT").write_bytes(b"\xef\xbb\xbf" + sentence(60, 4).encode())
    Path("texts/notes.md").write_bytes(b"\xff")


def save_model(model: PreTrainedModel) -> None:
    """Save a model with a memory to `mine`, made for the base in `base`."""
    model.config._name_or_path = "base"
    infini.retrofit(model, "window", window=8, sinks=2, retained=4).save_pretrained("mine")


def test_evaluate_prints_the_table_of_the_function(
    model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model)
    printed = run_command(
        capsys, "evaluate", "mine", "--file", "texts", "texts/one.txt", "--sinks", "2"
    )
    table = infini.evaluate("mine", [sentence(60, 4), sentence(40, 3)], sinks=2)
    assert printed == as_markdown(table, "mine", 2) + "\n"
    assert printed.startswith(f"2 texts, {table['tokens']['full']:,} tokens scored; ± is one")
    cells = [[c.strip() for c in line.split("|")] for line in printed.splitlines()[2:]]
    window = f"base, window of {table['window']['baseline']} and 2 sinks"
    assert [row[1] for row in cells[2:]] == ["mine", window, "base, full attention"]
    for row, (_, figures) in zip(cells[2:], table.iterrows(), strict=True):
        assert int(row[2].replace(",", "")) == figures["state_bytes"]
        for cell, name in zip(row[3:], ("nats", "ppl", "gain"), strict=False):
            if cell != "–":
                value, error = re.findall(r"−?[\d.]+", cell)[:2]
                expected = pytest.approx(figures[name], abs=figures[f"{name}_se"])
                assert float(value.replace("−", "-")) == expected
                assert float(error) == pytest.approx(figures[f"{name}_se"], rel=0.05)
    assert cells[3][5] == "–"


def test_evaluate_scores_a_base_with_and_without_a_window(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = run_command(capsys, "evaluate", "base", "--file", "texts/one.txt")
    assert re.match(r"1 text, \d+ tokens scored\.\n", alone)
    assert "±" not in alone
    assert "gain" not in alone
    beside = run_command(capsys, "evaluate", "base", "--file", "texts/one.txt", "--window", "8")
    assert "| base, window of 8 and 4 sinks |" in beside
    assert "gain over the window" in beside
    full = infini.evaluate("base", sentence(40, 3)).loc["full"]
    assert f" {full['nats']:#.4g} " in alone


def test_evaluate_finds_a_moved_base(
    model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model)
    words = ("mine", "--file", "texts/one.txt")
    printed = run_command(capsys, "evaluate", *words)
    Path("base").rename("moved")
    assert run_command(capsys, "evaluate", *words, "--base", "moved") == printed
    assert command_error(capsys, "evaluate", *words).endswith(
        "or say where the base is: --base FOLDER"
    )


def test_markdown_marks_gains_within_two_errors() -> None:
    row = {"window": 8, "state_bytes": 1000, "texts": 3, "tokens": 90}
    figures = {"nats": 3.0, "nats_se": 0.1, "ppl": 20.1, "ppl_se": 2.0}
    table = pd.DataFrame(
        [
            row | figures | {"gain": 0.02, "gain_se": 0.02},
            row | figures | {"gain": None, "gain_se": None},
            row | figures | {"gain": 0.05, "gain_se": 0.02},
        ],
        index=["model", "baseline", "full"],
    )
    lines = as_markdown(table, "mine", 4).splitlines()
    assert [line.split("|")[5].strip() for line in lines[4:]] == [
        "0.020 ± 0.020 ~", "–", "0.050 ± 0.020",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("base --file nothing.txt", "nothing.txt: no such file"),
        ("base --file texts/one.txt latin.txt", "latin.txt: not UTF-8 (byte 0xf6 at 1); save it"),
        ("base --file wide.txt", "wide.txt: NUL characters, UTF-16?; save it as UTF-8"),
        ("base --file empty.txt", "empty.txt: empty, must have ≥ 2 tokens"),
        ("base --file texts short.txt", "short.txt: must have ≥ 2 tokens, got 1"),
        ("base --file base", "base: the folder has no .txt file"),
        ("nowhere --file texts", "no model at 'nowhere', give a folder written by save_pretrained"),
        ("base --file texts --window 0", "window must be ≥ 1, got 0"),
        ("base --file texts --base base", "base is only for the folder of a saved model"),
        ("mine --file texts --window 8", "window is only for a base without a memory"),
        ("mine --file texts --base other", "mine: made for another base than 'other'"),
    ],
)
def test_evaluate_rejects_invalid_arguments(
    words: str,
    shown: str,
    model: PreTrainedModel,
    base_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(model)
    Path("latin.txt").write_bytes(b"z\xf6")
    Path("wide.txt").write_text("union", encoding="utf-16-le")
    Path("empty.txt").touch()
    Path("short.txt").write_text("u")
    if "other" in words:
        shutil.copytree(base_folder, "other")
        infini.remove(model).get_input_embeddings().weight.data.add_(1.0)
        model.save_pretrained("other")
    assert command_error(capsys, "evaluate", *words.split()).startswith(shown)
