"""Studies of the research log: its settings, and its own model's study from a hub to the report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

import hub
from infini import params
from infini.corpus.pieces import train_val_sizes
from toy import save_pythia_70m, sentence, write_params

# docs/research_log.md, what the log reports
LAYER = {"layers": [0], "local": "linear", "position": "none", "init": "random"}
DISTILL = {
    "v1": {"epochs": 10, "lr": 1e-4, "batch_size": 8, "hold_out": False, "patience": None},
    "v2": {"epochs": 50, "lr": 1e-4, "batch_size": 8, "hold_out": True, "patience": 2},
}
FINETUNE = {
    "v1": {"epochs": 5, "lr": 1e-5, "documents": 100, "hold_out": False, "patience": None},
    "v2": {"epochs": 50, "lr": 1e-5, "documents": 100, "hold_out": True, "patience": 2},
}
# The larger base has fewer epochs, and fewer documents for finetuning
CUT: dict[tuple[str, str, str], dict[str, Any]] = {
    ("research_log_smollm2", "v1", "finetune"): {"epochs": 1, "documents": 40},
    ("research_log_smollm2", "v2", "distill"): {"epochs": 15},
    ("research_log_smollm2", "v2", "finetune"): {"epochs": 1, "documents": 40, "patience": None},
}
STUDY = ROOT / "studies/pythia-70m"
MODEL, DATASET = "EleutherAI/pythia-70m", "monology/pile-uncopyrighted"

# In a process of its own, as libraries read the hub's address once
CHILD = """
import importlib, json, sys
for name, *words in json.loads(sys.argv[1]):
    importlib.import_module("stages." + name).main(*words)
"""


@pytest.mark.parametrize("study", ["pythia-70m", "research_log", "research_log_smollm2"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_studies_have_the_logs_settings(study: str, version: str) -> None:
    content = yaml.safe_load((ROOT / "studies" / study / "params.yaml").read_text())
    data, recipe = content["data"], content["replacements"][version]
    assert (data["samples"], data["documents"]) == (4417, 100)
    assert (data["document_length"], data["segment_length"]) == (4096, 256)
    assert train_val_sizes(100) == (90, 10)
    assert recipe["layer"].items() >= LAYER.items()
    for key, expected in (("distill", DISTILL[version]), ("finetune", FINETUNE[version])):
        assert recipe[key].items() >= {**expected, **CUT.get((study, version, key), {})}.items()
    assert content["adapters"]["v3"]["method"] == "parallel"


def test_study_learns_and_fixes_the_adapters_alpha() -> None:
    content = yaml.safe_load((ROOT / "studies/research_log/params.yaml").read_text())
    blocks = content["adapters"].values()
    alphas = [(block["alpha"]["init"], block["alpha"]["learn"]) for block in blocks]
    assert alphas == [(0.0, True), (0.1, False), (0.3, False), (1.0, False)]
    others = [{k: v for k, v in block.items() if k != "alpha"} for block in blocks]
    assert others[1:] == others[:1] * 3


@pytest.fixture
def repositories(tmp_path: Path, base_folder: Path) -> Path:
    """Return a hub's folder: a random GPT-NeoX of pythia-70m's shape, and a dataset of its text."""
    root, folder = tmp_path / "hub", tmp_path / "hub/models" / MODEL
    save_pythia_70m(folder, base_folder)
    (texts := root / "datasets" / DATASET).mkdir(parents=True)
    rows = [json.dumps({"text": sentence(700 + i, i)}) for i in range(40)]
    (texts / "train.jsonl").write_text("\n".join(rows) + "\n")
    return root


def few_steps(content: dict[str, Any]) -> dict[str, Any]:
    """Return the study's params with little data and one epoch of every training."""
    content["data"] |= {"samples": 10, "documents": 4, "document_length": 320}
    content["data"]["test"] = {"samples": 4, "documents": 2}
    recipes = list(content["adapters"].values())
    for version in content["replacements"].values():
        recipes += [recipe for recipe in (version["distill"], version["finetune"]) if recipe]
    for recipe in recipes:
        recipe["epochs"] = 1
        if "documents" in recipe:
            recipe["documents"] = 3
    content["evaluate"] |= {
        "short": {"samples": 4},
        "documents": 2,
        "double_shift": {"documents": 1},
        "full": {"context": 320, "stride": 320},
        "window": {"sizes": [64], "sinks": 4},
        "passkey": {"lengths": [2], "depths": [0.0], "samples": 1},
        "recall": None,
    }
    return content


@pytest.mark.slow
def test_study_of_the_logs_model_runs_from_the_hub(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(few_steps(yaml.safe_load((STUDY / "params.yaml").read_text())))
    commands = [["check_inputs"], ["prepare_data"], ["record_teacher"]]
    versions = params.load_params()
    for name in versions.replacements:
        commands += [["distill_layer0", name], ["finetune_long_context", name]]
    for name, adapter in versions.adapters.items():
        commands += [["adapter_parallel", name]]
        commands += [["adapter_parallel", name, "control"]] if adapter.control else []
    commands += [["evaluate_ppl", name] for name in ("base", *versions.versions)]
    commands += [["compare_report"]]
    with hub.running(repositories) as server:
        environment = server.environment(tmp_path / "cache") | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(commands)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = {
        file.stem: json.loads(file.read_text()) for file in Path("reports/metrics").iterdir()
    }
    assert metrics.keys() == {"base", *versions.versions}
    assert all(metrics[name]["documents"]["nats"] > 0 for name in versions.versions)
    report = Path("reports/compare.md").read_text()
    assert all(name in report for name in metrics)
