"""Every stage's main, run in a temporary directory at toy size."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file

from audits import audit
from infini.errors import InputError
from infini.files import flatten
from infini.paths import TEACHER
from infini.report.results import TRAINING_STEPS
from infini.training.teacher import Teacher
from toy import read_params, save_pythia_70m, sentence, stage, write_params

STEPS = ("finetune", "control")
# files of a saved model
SAVED = (
    "README.md",
    "config.json",
    "infini.safetensors",
    "infini_config.json",
    "model.safetensors.index.json",
)


def run_all() -> None:
    """Run all versions, the audits and costs, then the report."""
    params = read_params()
    run_versions()
    for name in audit.read_audits():
        audit.main(name)
    # a process per version and length: one version is enough
    write_params(params | {"replacements": {}, "adapters": {"v5": params["adapters"]["v5"]}})
    stage("measure_cost")
    write_params(params)
    stage("compare_report")


def write_audits(*names: str) -> None:
    """Write audits/params.yaml with these audits of the repository."""
    audits = yaml.safe_load((ROOT / audit.PARAMS).read_text())["audits"]
    audits["labels_shifted_twice"]["finetune"] = {}
    audit.FOLDER.mkdir()
    audit.PARAMS.write_text(yaml.safe_dump({"audits": {name: audits[name] for name in names}}))


def run_versions() -> None:
    params = read_params()
    stage("prepare_data")
    stage("evaluate_ppl", "base")
    for version in params["replacements"]:
        stage("distill_layer0", version)
        stage("finetune_long_context", version)
        stage("evaluate_ppl", version)
    for version in params["adapters"]:
        stage("adapter_parallel", version)
        stage("adapter_parallel", version, "control")
        stage("evaluate_ppl", version)


def files(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_pipeline_writes_models_metrics_and_report(project: Path) -> None:
    content = read_params()
    content["replacements"]["v9"] = content["replacements"]["v2"]
    write_params(content)
    write_audits("padding", "labels_shifted_twice", "carried_memory", "step_a_segment")
    run_all()

    versions = ["base", "v1", "v2", "v4", "v9", "v3", "v5"]
    assert files("data/models") == {
        f"{v}/{step}/seed0/{file}"
        for v in versions[1:]
        for step in ("finetune", "control" if v in ("v3", "v5") else "distill")
        for file in SAVED
    }
    assert files("reports/metrics") == {f"{v}.json" for v in versions}
    assert files("reports/curves") == {f"{v}.csv" for v in versions}
    drawn = ("state_bytes", "segments", "distance", "retrieval", "gates", "costs", *TRAINING_STEPS)
    assert {f"plots/{n}.svg" for n in drawn} < files("reports")
    assert not Path(".checkpoints").exists()

    metrics = {v: json.loads(Path(f"reports/metrics/{v}.json").read_text()) for v in versions}
    keys = {v: set(flatten(m)) for v, m in metrics.items()}
    assert keys["v2"] == keys["v9"]
    assert keys["v2"] - keys["v1"] == {"distill.val_loss", "finetune.val_ppl"}
    of_adapters = {k for k in keys["v3"] if k.startswith(("alpha.", "control.", "recovery."))}
    assert {k for k in keys["v2"] if not k.startswith("distill.")} == keys["v3"] - of_adapters
    shifts = {k for k in keys["v3"] if "double_shift" in k or k.startswith("alpha.")}
    assert keys["v5"] == keys["v3"] - shifts
    assert metrics["v4"]["distill"]["ppl_gap"] == 0  # it starts as the base
    assert metrics["v4"]["distill"]["test_loss"] < 1e-10
    assert metrics["v2"] == metrics["v9"]  # the same recipe and seed: the same figures
    assert metrics["v1"]["distill"]["train_size"] == 12
    assert metrics["v2"]["distill"]["train_size"] == 11

    for file in ("reports/compare.md", "reports/index.html"):
        page = Path(file).read_text()
        for word in ("v9", "recovery, %", "perplexity gap (distillation)", "finetune.lr"):
            assert word in page
    audited = {f.stem: json.loads(f.read_text()) for f in Path("audits/results").iterdir()}
    assert set(audited) == {"padding", "labels_shifted_twice", "carried_memory", "step_a_segment"}
    assert all(set(a) >= {"before", "after", "vs_version"} for a in audited.values())
    shifted = audited["labels_shifted_twice"]
    assert shifted["after"]["double_shift"]["ppl"] < shifted["before"]["double_shift"]["ppl"]
    costs = pd.read_csv("reports/costs.csv")
    assert set(costs["version"]) == {"base", "v5"}
    state = costs.pivot(index="version", columns="length", values="state_bytes")
    assert state.loc["base", 64] == 2 * state.loc["base", 32]
    assert (state.drop("base")[64] == state.drop("base")[32]).all()
    curves = pd.read_csv("reports/plots/distill.csv")
    assert set(curves["version"]) == {"v1", "v2", "v9"}
    assert set(curves.loc[curves["version"] == "v1", "split"]) == {"train"}


def test_adapter_fits_its_policy_before_training(project: Path) -> None:
    content = read_params() | {"replacements": {}}
    content["adapters"] = {"v5": content["adapters"]["v5"]}
    content["adapters"]["v5"]["layer"] |= {"retained": 4, "policy": "learned"}
    write_params(content)
    run_versions()
    weights = [load_file(f"data/models/v5/{step}/seed0/infini.safetensors") for step in STEPS]
    names = [name for name in weights[0] if ".policy_weights." in name]
    assert names
    for name in names:
        assert weights[0][name].any()
        assert torch.equal(weights[0][name], weights[1][name])
    assert Path("reports/metrics/v5.json").is_file()


def test_adapter_keeps_alpha_that_is_not_learned(project: Path) -> None:
    content = read_params() | {"replacements": {}}
    adapter = content["adapters"]["v3"] | {"alpha": {"init": 0.3, "learn": False}}
    content["adapters"] = {"v3": adapter}
    write_params(content)
    run_versions()
    for step in STEPS:
        weights = load_file(f"data/models/v3/{step}/seed0/infini.safetensors")
        assert weights.pop("layers.0.alpha") == torch.tensor(0.3)
        assert weights["layers.0.attention.beta"].any(), "the rest is trained"
    assert json.loads(Path("reports/metrics/v3.json").read_text())["alpha"] == {"layer0": 0.3}


def test_report_repeats_its_bytes_but_for_the_page(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = read_params() | {"replacements": {}}
    write_params(content)
    run_versions()
    stage("compare_report")
    tracked = {p: p.read_bytes() for p in Path("reports").rglob("*") if p.is_file()}
    page = tracked.pop(Path("reports/index.html"))
    assert b"Wall time" in page
    assert not any(b"Wall time" in content for content in tracked.values())
    shutil.rmtree("data/times")
    stale = [  # of versions that params.yaml has no more
        "reports/metrics/v9.json", "reports/curves/v9.csv", "data/models/v9/x",
        "data/evaluation/v9/x", ".checkpoints/v9-finetune-seed-0-0123.safetensors",
    ]  # fmt: skip
    for file in map(Path, stale):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    stage("compare_report")
    for name in stale:
        assert f"{name.removesuffix('/x')}: no version of params.yaml, not shown" in caplog.text
    assert tracked == {p: p.read_bytes() for p in tracked}
    assert b"v3" in Path("reports/index.html").read_bytes()


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_other_number_of_threads_writes_the_same_files(project: Path) -> None:
    content = read_params()
    content["replacements"] = {"v2": content["replacements"]["v2"]}
    content["adapters"] = {"v5": content["adapters"]["v5"]}
    content["data"] |= {"document_length": 512, "segment_length": 32}
    content["evaluate"]["full"]["context"] = 64
    write_params(content)
    for i, file in enumerate(sorted(Path("text").iterdir())):
        file.write_text(sentence(600, i))
    Path(".gitignore").write_text((ROOT / ".gitignore").read_text())
    git("init", "-q")
    git("commit", "-qm", "empty", "--allow-empty")
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            run_versions()
            stage("compare_report")
        finally:
            torch.set_num_threads(threads)
        changed = git("status", "--porcelain", "reports") if count > 1 else ""
        git("add", "-A")
        git("commit", "-qm", "run", "--allow-empty")
        shutil.rmtree("data")
    assert not changed, git("show")


def test_run_with_seeds_reports_means_and_spreads(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = read_params() | {"seeds": [1]}
    content["replacements"] = {"v2": content["replacements"]["v2"]}
    write_params(content)
    run_versions()
    for version in ("v2", "v3"):
        assert files(f"data/models/{version}/finetune") == {
            f"seed{seed}/{file}" for seed in (0, 1) for file in SAVED
        }
        assert set(pd.read_csv(f"reports/training/{version}/finetune.csv")["seed"]) == {0, 1}
        losses = pd.read_parquet(f"data/evaluation/{version}/losses.parquet")
        sums = losses.query("protocol == 'documents'").groupby("seed")[["nats", "tokens"]].sum()
        each = np.exp(sums["nats"] / sums["tokens"])
        metrics = json.loads(Path(f"reports/metrics/{version}.json").read_text())
        spread = metrics["spread"]["documents"]["ppl"]
        digit = pytest.approx(0, abs=math.hypot(spread, metrics["documents"]["ppl_se"]) / 100)
        assert metrics["documents"]["ppl"] - each.mean() == digit  # rounded
        assert spread - each.std() == digit

    caplog.set_level("INFO")
    stage("compare_report")
    assert "The report: reports/index.html" in caplog.text
    assert "v5 does not beat both" in caplog.text
    shown = f"{metrics['documents']['nats']:.3g}"[:3]
    row = next(
        line for line in Path("reports/compare.md").read_text().splitlines() if "| v3 " in line
    )
    assert shown in row
    curves = pd.read_csv("reports/plots/finetune.csv")
    assert set(curves["version"]) == {f"{v} seed {s}" for v in ("v2", "v3", "v5") for s in (0, 1)}


def test_base_of_pythia_70m_shape_from_a_local_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The research log's base, with random weights, and a local corpus, by params alone."""
    content = read_params()
    save_pythia_70m(Path("pythia-70m"), Path(content["base"]["model"]))
    Path("lines").mkdir()
    lines = [{"text": p.read_text()} for p in sorted(Path("text").iterdir())]
    Path("lines/a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    content["base"]["model"] = "pythia-70m"
    content["data"]["corpus"] = "lines"
    content["replacements"]["v1"]["distill"]["epochs"] = 1
    write_params(content)
    stage("prepare_data")
    stage("distill_layer0", "v1")
    from safetensors.torch import load_file

    tensors = load_file("data/models/v1/distill/seed0/infini.safetensors")
    assert tensors["layers.0.layer.attention.attention.q_proj.weight"].shape == (512, 512)
    assert tensors["layers.0.layer.attention.attention.beta"].shape == (8,)
    assert tensors["layers.0.layer.mlp.dense_h_to_4h.weight"].shape == (2048, 512)


def test_stages_name_missing_files(project: Path) -> None:
    with pytest.raises(InputError, match=r"train.parquet: not found; run stage prepare_data"):
        stage("distill_layer0", "v1")
    content = read_params()
    content["base"]["model"] = "no/such-model"
    write_params(content)
    with pytest.raises(InputError, match=r"^base.model: no model at 'no/such-model'"):
        stage("prepare_data")


def test_stage_rejects_unknown_version(project: Path) -> None:
    with pytest.raises(InputError, match=r"replacements.v8.layer: no such key"):
        stage("distill_layer0", "v8")


def test_check_inputs_names_a_folder_in_a_checkpoints_place(project: Path) -> None:
    place = Path(".checkpoints/v5-finetune-seed-0-0123456789abcdef.safetensors")
    place.mkdir(parents=True)
    with pytest.raises(InputError, match=rf"^{place}: must be a file, is a folder; remove it$"):
        stage("check_inputs")
    shutil.rmtree(".checkpoints")
    Path(".checkpoints").touch()
    with pytest.raises(InputError, match=r"^.checkpoints: must be a folder, is a file; remove it$"):
        stage("check_inputs")


def test_record_teacher_records_nothing_where_nothing_is_distilled(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_params()
    write_params(content)
    stage("check_inputs")
    stage("prepare_data")
    from stages import record_teacher

    monkeypatch.setattr(record_teacher, "load_base", None)  # not called
    stage("record_teacher")
    assert len(Teacher.load(TEACHER, 0).ids) == 0
    monkeypatch.undo()
    monkeypatch.chdir(project)
    content["adapters"]["v5"]["objective"] = "distillation"
    write_params(content)
    stage("check_inputs")
    stage("record_teacher")
    assert len(Teacher.load(TEACHER, 5).ids) == 5
