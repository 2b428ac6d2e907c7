"""What the stages left is read once, whatever the number of seeds."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from infini.errors import InputError
from infini.evaluation.estimates import Estimate
from infini.files import write_json
from infini.paths import AUDITS as AUDIT_FOLDER
from infini.paths import AUDITS_LOCK, COSTS, EVALUATION, METRICS, PREPARED, SAMPLES, TIMES, TRAINING
from infini.report import tables
from infini.report.results import Setup, loss_curve, read_results, read_times
from report.toy_results import AUDITS, BASE, SETUP, audit, gates, losses, passkey, version

COST = pd.DataFrame(
    {"version": ["base"], "length": [32], "state_bytes": 1, "tokens_per_second": 1.0, "peak_mib": 1}
)
ONE = replace(SETUP, replacements={}, audits=AUDITS)  # v3 alone


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as the stages leave them: the base of one seed, v3 of two, one audit, no costs."""
    monkeypatch.chdir(tmp_path)
    write_json(METRICS / "base.json", BASE)
    spread = {"spread": {"documents": {"ppl": 1.5}}}
    write_json(METRICS / "v3.json", version(38.0, 40.0, 0.05, 0.005) | spread)
    write_json(AUDIT_FOLDER / "right.json", audit((90.0, 50.0), (12000.0, 11000.0)))
    write_json(PREPARED, {"train": {"texts": 3}})
    tables = {
        "base": losses(segmented=3.6, full=3.5).assign(seed=0),
        "v3": pd.concat(
            [
                losses(documents=nats, memory_off=3.6).assign(seed=seed)
                for seed, nats in ((0, 3.4), (1, 3.6))
            ]
        ),
    }
    for name, table in tables.items():
        (EVALUATION / name).mkdir(parents=True)
        table.to_parquet(EVALUATION / name / "losses.parquet", index=False)
        passkey(0.1).to_csv(EVALUATION / name / "passkey.csv", index=False)
        gates(0.4).to_csv(EVALUATION / name / "gates.csv", index=False)
    summary = {"epochs": 2, "best_epoch": 1, "stopped_early": 0}
    write_json(TRAINING / "v3/finetune.json", {"0": summary, "1": summary})
    curve = pd.DataFrame({"epoch": [1, 2], "train_loss": [3.0, 2.0], "val_loss": [3.0, 4.0]})
    both = pd.concat([curve.assign(seed=0), curve.assign(seed=1)])
    both.to_csv(TRAINING / "v3/finetune.csv", index=False)
    SAMPLES.mkdir(parents=True)
    pd.DataFrame({"tokens": [[1] * 256, [1] * 128]}).to_parquet(SAMPLES / "train.parquet")
    return tmp_path


def test_an_earlier_evaluation_asked_for_pass_keys_alone(folder: Path) -> None:
    file = EVALUATION / "v3/passkey.csv"
    new = read_results(ONE).passkey["v3"]
    old = new.query("task == 'passkey'").drop(columns="task")
    old.to_csv(file, index=False)
    assert read_results(ONE).passkey["v3"]["task"].tolist() == ["passkey"] * len(old)
    assert new["task"].tolist() == ["passkey"] * 4 + ["recall"] * 3


def test_everything_is_read(folder: Path) -> None:
    results = read_results(ONE)
    assert list(results.figures) == list(results.losses) == ["base", "v3"]
    assert results.figures["v3"]["documents.ppl"] == Estimate(38.0, math.hypot(0.5, 1.5))
    assert results.figures["v3"]["memory.gain"] == Estimate(math.log(40 / 38), 0.01, True)
    assert results.metrics.loc["v3", "documents.ppl_se"] == 0.5
    assert list(results.audits) == ["right"]  # the other was not run
    assert results.audits["right"]["after.segmented.ppl"] == Estimate(50.0)
    assert results.costs.empty
    assert results.padding == 0.25
    assert results.prepared == {"train": {"texts": 3}}
    assert set(results.gates) == {"v3"}
    assert results.curves["distill"].empty


def test_losses_are_the_mean_over_seeds(folder: Path) -> None:
    found = read_results(ONE).losses
    assert "seed" not in found["base"].columns.union(found["v3"].columns)
    assert len(found["v3"]) == 16  # two protocols, four texts, two segments
    by_segment = tables.perplexity_by(found, "segment")
    assert by_segment.loc["0", "v3"].value == pytest.approx(33.1155, rel=1e-5)  # e^3.5


def test_curves_of_several_seeds_are_told_apart(folder: Path) -> None:
    curves = read_results(ONE).curves["finetune"]
    assert list(curves["version"].unique()) == ["v3 seed 0", "v3 seed 1"]


def test_costs_are_read_once_measured(folder: Path) -> None:
    COST.to_csv(COSTS, index=False)
    assert read_results(ONE).costs["length"].tolist() == [32]


def test_audits_and_costs_of_another_run_are_left_out(folder: Path) -> None:
    COST.to_csv(COSTS, index=False)
    stage = {"deps": [{"path": "data/inputs/base.json", "md5": "aa"}]}
    AUDITS_LOCK.parent.mkdir(parents=True)
    AUDITS_LOCK.write_text(
        yaml.safe_dump({"stages": {"audit@right": stage, "measure_cost": stage}})
    )
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare_data": stage}}))
    results = read_results(ONE)
    assert results.foreign == []
    assert list(results.audits) == ["right"]
    assert len(results.costs) == 1
    Path("dvc.lock").write_text(
        yaml.safe_dump({"stages": {"prepare_data": {"deps": [stage["deps"][0] | {"md5": "bb"}]}}})
    )
    results = read_results(ONE)
    assert results.foreign == ["costs", "right"]
    assert not results.audits
    assert results.costs.empty


def test_a_figure_that_is_not_there_is_told_of_its_file(folder: Path) -> None:
    found = read_results(ONE).figures["v3"]
    assert found.get("gone.ppl") is None
    with pytest.raises(InputError, match=r"^reports/metrics/v3.json: no gone.ppl in it; run the"):
        found["gone.ppl"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\xff\xfe garbage \x00" * 20,
    "of another kind": lambda content: b'{"a": {"b": "c"}}',
    "a conflict": lambda content: b"<<<<<<< ours\n" + content + b"=======\n>>>>>>> theirs\n",
    "other names": lambda content: content.replace(b"e", b"x"),
    "not finite": lambda content: re.sub(rb"[0-9]+\.[0-9]+", b"NaN", content),
}


def refusal() -> str:
    """What reading the results says; empty where it does."""
    try:
        read_results(ONE)
    except InputError as error:
        return str(error)
    return ""


def test_damaged_results_are_one_line_or_read(folder: Path, subtests: pytest.Subtests) -> None:
    COST.to_csv(COSTS, index=False)
    AUDITS_LOCK.parent.mkdir(parents=True)
    AUDITS_LOCK.write_text(yaml.safe_dump({"stages": {"measure_cost": {"deps": []}}}))
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert len(files) >= 13
    for file in files:
        content = file.read_bytes()
        for damage, damaged in DAMAGES.items():
            with subtests.test(file=str(file), damage=damage):
                file.write_bytes(damaged(content))
                message = refusal()
                assert not message or message.startswith(f"{file}: ")
                assert "\n" not in message
        file.write_bytes(content)
    read_results(ONE)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (METRICS / "v3.json", '{"documents": {"ppl": NaN}}', "documents.ppl: a finite number is n"),
        (METRICS / "v3.json", '{"documents": {"ppl": "3"}}', "documents.ppl: a finite number is n"),
        (METRICS / "v3.json", "<<<<<<< ours", "not JSON"),
        (AUDIT_FOLDER / "right.json", '{"before": null}', "before: a finite number is needed"),
        (EVALUATION / "v3/gates.csv", "a,b\n1,2\n", "no column layer, head, gate"),
        (TRAINING / "v3/finetune.json", '{"0": {}}', "no 1 in it"),
        (AUDITS_LOCK, "<<<<<<< ours", "not a lock of DVC's"),
    ],
)
def test_what_the_report_cannot_tell_of_is_named(
    folder: Path, file: Path, content: str, message: str
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    with pytest.raises(InputError, match=f"^{file}: {message}"):
        read_results(ONE)


def test_times_are_of_the_versions_and_may_be_missing(folder: Path) -> None:
    assert read_times(ONE) == {}
    for name in ("v3-finetune", "prepare-data", "base-evaluate", "gone-distill", "right-audit"):
        write_json(TIMES / f"{name}.json", {"seconds": 1.0, "startup": 2.0})
    assert list(read_times(ONE)) == ["base-evaluate", "prepare-data", "v3-finetune"]


def test_replacements_come_before_adapters() -> None:
    assert list(SETUP.versions) == ["v1", "v2", "v3"]
    assert isinstance(ONE, Setup)
    assert list(ONE.versions) == ["v3"]


def test_curves_mark_the_best_epoch_and_the_stop() -> None:
    curve = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "val_loss": [3.0, 2, 4]})
    table = loss_curve(curve, {"epochs": 3, "best_epoch": 2, "stopped_early": 1}, "v2")
    assert len(table) == 6
    assert set(table.loc[table["event"] == "best", "epoch"]) == {2}
    assert set(table.loc[table["event"] == "stopped", "epoch"]) == {3}
