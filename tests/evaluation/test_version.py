"""A version's evaluation at toy size: against direct calls, and the base behind it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from infini import params
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.cost import read, state_bytes
from infini.evaluation.estimates import flatten, rounded
from infini.evaluation.layer_error import mean_squared_error, record_layer
from infini.evaluation.passkey import passkey, summary
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.version import evaluate_base, evaluate_version, of, write
from infini.model.base import load_tokenizer
from infini.model.layers import added_parameters, memory_modules
from infini.model.loading import load
from infini.paths import model_folder
from toy import read_params, stage, write_params

L = 16


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test puts what the stages have written."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def text(project: Path, base_folder: Path, outputs: Path) -> HeldOutText:
    """Test text of a project whose base is evaluated, v2 and v3 trained."""
    content = read_params()
    content["evaluate"]["double_shift"]["documents"] = 1  # fewer than the others score
    write_params(content)
    if not any(outputs.iterdir()):
        stage("prepare_data")
        stage("evaluate_ppl", "base")
        stage("distill_layer0", "v2")
        stage("finetune_long_context", "v2")
        stage("adapter_parallel", "v3")
        for name in ("data", "reports"):
            shutil.copytree(name, outputs / name)
    for name in ("data", "reports"):
        shutil.copytree(outputs / name, name, dirs_exist_ok=True)
    return HeldOutText(params.read("evaluate", Evaluate), L, load_tokenizer(str(base_folder)))


def written(version: str) -> dict[str, Any]:
    return json.loads(Path(f"reports/metrics/{version}.json").read_text())


def test_the_base_is_scored_by_every_protocol_that_it_can_be(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    found = evaluate_base(model, text)
    assert found.metrics.keys() == {
        "short", "segmented", "sliding", "double_shift", "passkey", "cost"
    }  # fmt: skip
    ceiling = perplexity.sliding(model, text.documents, 32, 8)
    assert found.metrics["sliding"]["ppl"] == rounded(ceiling.perplexity)
    segmented = perplexity.segmented(model, text.documents, L)
    assert found.metrics["segmented"]["ppl"] == rounded(segmented.perplexity)
    assert found.metrics["segmented"]["bits_per_byte"] == rounded(segmented.bits_per_byte)
    cache = read(model, text.documents.tokens[:1])
    assert found.metrics["cost"] == {"state_bytes": state_bytes(cache), "parameters": 0}
    assert found.gates.empty
    assert found.gates.columns.tolist() == ["layer", "head", "gate"]


@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.no_grad()
def test_behind_an_evaluation_the_base_is_untouched(
    model: PreTrainedModel, text: HeldOutText, version: str
) -> None:
    kind, tokens = type(model), text.documents.tokens[:2]
    before = model(tokens).logits
    evaluate_version(model, version, 0, text)
    assert type(model) is kind
    assert not memory_modules(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_finished_models_figures_are_those_of_direct_calls(
    model: PreTrainedModel, text: HeldOutText, version: str
) -> None:
    found, losses, cases, gates = evaluate_version(model, version, 0, text)
    base = perplexity.segmented(model, text.documents, L)
    ceiling = perplexity.sliding(model, text.documents, 32, 8)
    load(model_folder(version, "finetune", 0), model)
    on = perplexity.segmented(model, text.documents, L)
    off = perplexity.segmented(model, text.documents, L, memory=False)
    first = text.documents.first(1)
    shifted = perplexity.double_shift(model, first, L)
    same = perplexity.segmented(model, first, L)
    short = perplexity.segmented(model, text.samples, L)
    assert found["short"]["ppl"] == rounded(short.perplexity)
    assert found["segmented"]["ppl"] == found["finetune"]["ppl_after"] == rounded(on.perplexity)
    assert found["segmented"]["bits_per_byte"] == rounded(on.bits_per_byte)
    assert found["memory_off"]["ppl"] == rounded(off.perplexity)
    shown = found["double_shift"]
    assert shown["ppl"] == rounded(shifted.perplexity)
    assert shown["next_token_ppl"] == rounded(same.perplexity) != found["segmented"]["ppl"]
    assert "bits_per_byte" not in shown
    assert found["memory"]["gain"] == pytest.approx(off.mean - on.mean, rel=1e-4, abs=1e-7)
    assert found["vs_base"]["nats"] == pytest.approx(on.mean - base.mean, rel=1e-4)
    share = (base.mean - on.mean) / (base.mean - ceiling.mean)
    assert found["context_recovery"]["share"] == pytest.approx(share, rel=1e-4)
    pd.testing.assert_frame_equal(cases, passkey(model, text.haystacks))
    assert found["passkey"] == summary(cases)
    cache = read(model, text.documents.tokens[:1])
    assert found["cost"] == {
        "state_bytes": state_bytes(cache),
        "parameters": added_parameters(model),
    }
    sums = of(losses, "memory_off")[["nats", "tokens"]].sum()
    assert sums["nats"] == pytest.approx(off.total)
    assert sums["tokens"] == off.tokens
    ((layer, module),) = memory_modules(model).items()
    assert gates["layer"].unique() == [layer]
    expected = module.infini_attention.beta.detach().sigmoid().tolist()
    assert gates["gate"].tolist() == pytest.approx(expected, rel=1e-5)
    if version == "v3":
        assert found["alpha"] == {"layer0": rounded(module.alpha.item())}


def test_a_distilled_models_figures_are_those_of_direct_calls(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    found = evaluate_version(model, "v2", 0, text).metrics
    base, trained = written("base"), json.loads(Path("data/training/v2/distill.json").read_text())
    data = record_layer(model, 0, text.samples)
    untouched = perplexity.segmented(model, text.samples, L).perplexity
    load(model_folder("v2", "distill", 0), model)
    distilled = perplexity.segmented(model, text.samples, L).perplexity
    error = mean_squared_error(memory_modules(model)[0], data)
    before = perplexity.segmented(model, text.documents, L)
    first = text.documents.first(1)
    shifted = perplexity.double_shift(model, first, L)
    same = perplexity.segmented(model, first, L)
    expected = {name: rounded(value) for name, value in trained["0"].items()} | {
        "test_loss": rounded(error),
        "ppl_original": rounded(untouched),
        "ppl_distilled": rounded(distilled),
    }
    gap = found["distill"].pop("ppl_gap")
    assert found["distill"] == expected
    assert gap == pytest.approx(distilled - untouched, rel=1e-3)
    tuned = found["finetune"]
    assert tuned["ppl_before"] == rounded(before.perplexity) != base["segmented"]["ppl"]
    assert tuned["double_shift_before"] == rounded(shifted.perplexity)
    assert tuned["double_shift_next_before"] == rounded(same.perplexity)
    assert tuned["ppl_improvement"] == rounded(tuned["ppl_before"] - tuned["ppl_after"])
    row = json.loads(Path("data/training/v2/finetune.json").read_text())["0"]
    assert tuned["val_ppl"] == rounded(math.exp(rounded(row["val_loss"])))


def test_both_kinds_of_version_have_the_same_keys_but_for_distillation_and_alpha(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    found = {name: evaluate_version(model, name, 0, text).metrics for name in ("v2", "v3")}
    replaced, beside = (set(flatten(metrics)) for metrics in found.values())
    distilled = {key for key in replaced if key.startswith("distill.")}
    assert {"distill.ppl_gap", "distill.test_loss", "distill.val_loss"} < distilled
    assert replaced - beside == distilled
    assert beside - replaced == {"alpha.layer0"}
    # Before its training, an adapter is the base.
    assert found["v3"]["finetune"]["ppl_before"] == written("base")["segmented"]["ppl"]


def test_what_is_written_is_every_seeds(model: PreTrainedModel, text: HeldOutText) -> None:
    one = evaluate_version(model, "v3", 0, text)
    other = one._replace(
        metrics=one.metrics | {"alpha": {"layer0": one.metrics["alpha"]["layer0"] + 2.0}}
    )
    write("v3", {0: one})
    assert written("v3") == one.metrics
    write("v9", {4: one, 7: other})
    metrics = written("v9")
    spread = metrics.pop("spread")
    assert spread == {"alpha": {"layer0": pytest.approx(math.sqrt(2), rel=1e-5)}}
    alpha = metrics["alpha"].pop("layer0")
    assert alpha == pytest.approx(one.metrics["alpha"]["layer0"] + 1.0, rel=1e-5)
    assert metrics == one.metrics | {"alpha": {}}
    folder = Path("data/evaluation/v9")
    for table, name in ((one.losses, "losses"), (one.passkey, "passkey"), (one.gates, "gates")):
        file = next(folder.glob(f"{name}.*"))
        found = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
        assert found.columns.tolist() == [*table.columns, "seed"]
        for seed in (4, 7):
            own = found[found["seed"] == seed].drop(columns="seed").reset_index(drop=True)
            pd.testing.assert_frame_equal(own, table, check_dtype=False)
