"""Command `bench`: the table, the files, what to take, errors in one line."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import infini
from cli.commands import command_error, run_command
from infini.cli.bench import bench_markdown, best_first, model_call, recommendation
from infini.evaluation.byte_budget import show_bytes
from infini.evaluation.cost import cache_after, state_bytes
from infini.model.base import load_base
from infini.model.modules import retained_modules
from toy import sentence

WORDS = ("--bytes", "11K,13K", "--policies", "tova,keydiff", "--window", "4", "--sinks", "2")


@pytest.fixture(autouse=True)
def folder(folder_with_base: None) -> None:
    """A folder with a base and two texts."""
    Path("texts").mkdir()
    for seed in (1, 2):
        Path(f"texts/{seed}.txt").write_text(sentence(60, seed))


def test_bench_prints_the_table_and_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_command(
        capsys, "bench", "--model", "base", "--text", "texts", *WORDS, "--out", "out/here"
    )
    written = pd.read_csv("out/here/bench.csv")
    table = infini.bench(
        "base", [sentence(60, seed) for seed in (1, 2)], ("11K", "13K"),
        policies=("tova", "keydiff"), window=4, sinks=2,
    )  # fmt: skip
    timed = ["tokens_per_second", "peak_mib"]
    pd.testing.assert_frame_equal(
        written.drop(columns=timed), table.drop(columns=timed), check_dtype=False
    )
    assert printed.startswith("2 texts, ")
    assert bench_markdown(written) in printed
    assert recommendation(table) in printed.splitlines()
    assert "<svg" in Path("out/here/bench.svg").read_text()


def test_printed_calls_make_the_models_of_the_best_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = load_base("base")
    infini.retrofit(base, "window", window=4, retained=2).save_pretrained("saved")
    infini.remove(base)
    printed = run_command(
        capsys, "bench", "--model", "base", "--text", "texts", *WORDS, "--saved", "saved"
    )
    table = pd.read_csv("bench/bench.csv")
    lines = printed.splitlines()[-3:]
    for (budget, rows), line in zip(best_first(table), lines, strict=True):
        assert line.startswith(f"{show_bytes(budget)}: infini.")
        assert model_call(rows.iloc[0], 2, ["saved"]) == line.partition(": ")[2]
    rows = table[table["budget"].notna()].drop_duplicates("policy")
    assert set(rows["policy"]) == {"window", "tova", "keydiff", "saved"}
    tokens = torch.arange(1, 60)[None]
    for _, own in rows.iterrows():
        call = model_call(own, 2, ["saved"])
        model = eval(call, {"infini": infini, "model": base})
        assert state_bytes(cache_after(model, tokens)).total == own["state_bytes"]
        infini.remove(model)
    fitted = pd.Series({"policy": "learned", "window": 4.0, "retained": 3.0})
    exec(model_call(fitted, 2), {"infini": infini, "model": base, "fit_texts": [sentence(90, 0)]})
    assert all(own.policy_weights["scalar"].any() for own in retained_modules(base).values())


def row(policy: str, budget: int, behind: float, error: float | None) -> dict[str, object]:
    return {"policy": policy, "budget": budget, "behind": behind, "behind_se": error}


def test_recommendation_says_which_leads_are_noise() -> None:
    rows = [
        row("window", 4_000_000, 0.02, 0.001), row("tova", 4_000_000, 0.003, 0.002),
        row("h2o", 4_000_000, 0.0, None), row("window", 8_000_000, 0.0, None),
        row("tova", 8_000_000, 0.01, 0.001), row("window", 12_100_000, 0.0, None),
    ]  # fmt: skip
    full = {"policy": "full", "budget": None}
    assert recommendation(pd.DataFrame([*rows, full])) == (
        "take h2o for 4 MB (0.0030 ± 0.0020 nats ahead of tova, within two standard errors); "
        "window for 8 MB (0.0100 ± 0.0010 nats ahead of tova); window for 12.1 MB (nothing else "
        "fits)"
    )
    alone = pd.DataFrame([row("tova", 4000, 0.0, None), row("window", 4000, 0.02, None)])
    assert recommendation(alone) == (
        "take tova for 4 kB (0.02000 nats ahead of window; one text gives no standard error)"
    )


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--model base --text nothing.txt", "nothing.txt: no such file"),
        ("--model nowhere --text texts", "no model at 'nowhere', give a folder written by"),
        ("--model base --text texts --bytes 1M", "--bytes must be < "),
        ("--model base --text texts --bytes 11K,x", "--bytes must be bytes, such as"),
        ("--model base --text texts --policies tova,best", "policy must be one of"),
        ("--model base --text texts --saved base", "base: no saved model with a memory"),
        ("--model base --text texts --out texts/1.txt", "texts/1.txt: must be a folder"),
    ],
)
def test_bench_rejects_invalid_arguments(
    words: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_error(capsys, "bench", *words.split()).startswith(shown)
