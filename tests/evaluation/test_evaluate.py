"""Evaluation of base and versions at toy size against direct calls."""

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
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.cost import cache_after, state_bytes
from infini.evaluation.estimates import perplexity_metrics, rounded, rows_of_protocol
from infini.evaluation.evaluate import evaluate_base, evaluate_version, write_evaluations
from infini.evaluation.layer_error import mean_squared_error, record_layer
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.retrieval import retrieval_metrics, score_retrieval
from infini.evaluation.rounding import round_metrics
from infini.files import flatten
from infini.model.base import load_tokenizer
from infini.model.loading import load, loaded
from infini.model.modules import added_parameters, has_memory, segmented_layers
from infini.model.retrofit import sliding_window
from infini.paths import EVALUATION, Version
from toy import read_params, stage, write_params

L = 16


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where the first test keeps what the stages have written."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def text(project: Path, base_folder: Path, outputs: Path) -> HeldOutText:
    """Return the test text of a project with its base evaluated and v2, v3 and v5 trained."""
    content = read_params()
    content["evaluate"]["double_shift"]["documents"] = 1  # fewer than the others score
    write_params(content)
    if not any(outputs.iterdir()):
        stage("prepare_data")
        stage("evaluate_ppl", "base")
        stage("distill_layer0", "v2")
        stage("finetune_long_context", "v2")
        for version in ("v3", "v5"):
            stage("adapter_parallel", version)
            stage("adapter_parallel", version, "control")
        for name in ("data", "reports"):
            shutil.copytree(name, outputs / name)
    for name in ("data", "reports"):
        shutil.copytree(outputs / name, name, dirs_exist_ok=True)
    return HeldOutText(params.get("evaluate", Evaluate), L, load_tokenizer(str(base_folder)))


def written(version: str) -> dict[str, Any]:
    return json.loads(Path(f"reports/metrics/{version}.json").read_text())


def test_evaluate_base_matches_direct_calls(model: PreTrainedModel, text: HeldOutText) -> None:
    found = evaluate_base(model, text).metrics
    assert found.keys() == {
        "short", "segmented", "full", "double_shift", "window_4", "window_16", "state_bytes",
        "passkey", "recall", "added_parameters",
    }  # fmt: skip
    cases = score_retrieval(model, text.haystacks, 32)
    assert {name: found[name] for name in ("passkey", "recall")} == retrieval_metrics(cases)
    ceiling = perplexity.score_full_attention(model, text.long_documents, 32, 8)
    assert found["full"]["ppl"] == rounded(ceiling.perplexity)
    segmented = perplexity.score_documents(model, text.long_documents, L)
    assert found["segmented"]["ppl"] == rounded(segmented.perplexity)
    assert found["segmented"]["nats"] == rounded(segmented.mean)
    assert found["segmented"]["bits_per_byte"] == rounded(segmented.bits_per_byte)
    token = 2 * 2 * 16 * 4  # keys and values, layers, width, float32
    assert found["full"]["state_bytes"] == 32 * token
    assert found["state_bytes"] == {
        "exact": (L - 1) * token, "pending": 0, "memory": 0, "total": (L - 1) * token
    }  # fmt: skip
    for size in (4, 16):
        window = found[f"window_{size}"]
        assert window["tokens"] == size
        with sliding_window(model, window["tokens"], 2):
            scored = perplexity.score_documents(model, text.long_documents, L)
            cache = cache_after(model, text.long_documents.tokens[:1])
        assert window["ppl"] == rounded(scored.perplexity)
        assert window["state_bytes"] == state_bytes(cache).total


def test_evaluate_version_itemises_state_bytes(model: PreTrainedModel, text: HeldOutText) -> None:
    """The model is a GPT-NeoX of 2 layers, 2 heads of 8, float32."""
    found = {
        v: evaluate_version(model, Version(v), text).metrics["state_bytes"] for v in ("v3", "v5")
    }
    memory = 2 * (8 * 8 + 8) * 4  # M and z a head
    assert found["v3"] == {
        "exact": (L - 1) * 2 * 2 * 16 * 4, "pending": L * 2 * 16 * 4, "memory": memory,
        "total": (L - 1) * 256 + L * 128 + memory,
    }  # fmt: skip
    exact, memory = (2 + 8 - 1) * 256, 2 * 2 * 8 * 8 * 4  # sinks and window; M in two layers
    assert found["v5"] == {
        "exact": exact, "pending": 0, "memory": memory, "total": exact + memory
    }  # fmt: skip


@pytest.mark.parametrize("version", ["v3", "v5"])
def test_evaluate_version_compares_with_baseline_and_control(
    model: PreTrainedModel, text: HeldOutText, version: str
) -> None:
    found = evaluate_version(model, Version(version), text)
    metrics, token = found.metrics, 256
    size = metrics["baseline"]["window"]
    assert (size + 1) * token >= metrics["state_bytes"]["total"] > size * token
    ceiling = perplexity.score_full_attention(model, text.long_documents, 32, 8)
    with sliding_window(model, size, 2):
        window = perplexity.score_documents(model, text.long_documents, L)
    with loaded(Version(version).model_folder("control"), model):
        control = perplexity.score_documents(model, text.long_documents, L, "swapped")
    with loaded(Version(version).model_folder("finetune"), model):
        own = perplexity.score_documents(model, text.long_documents, L)
        swapped = perplexity.score_documents(model, text.long_documents, L, "swapped")
    close = {"rel": 1e-3, "abs": 1e-6}
    assert metrics["baseline"]["ppl"] == rounded(window.perplexity)
    assert metrics["baseline"]["gain"] == pytest.approx(window.mean - own.mean, **close)
    assert metrics["control"]["ppl"] == rounded(control.perplexity)
    assert metrics["control"]["gain"] == pytest.approx(control.mean - own.mean, **close)
    share = (control.mean - own.mean) / (window.mean - ceiling.mean)
    assert metrics["recovery"]["share"] == pytest.approx(share, rel=1e-2)
    assert metrics["memory_swapped"]["gain"] == pytest.approx(swapped.mean - own.mean, **close)
    assert control.mean != pytest.approx(swapped.mean, rel=1e-6)  # the control was trained for it


def test_evaluate_version_rejects_a_base_scored_on_other_text(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    file = EVALUATION / "base/losses.parquet"
    table = pd.read_parquet(file)
    for changed in (table.assign(bytes=table["bytes"] + 1), table[table["piece"] == 0]):
        changed.to_parquet(file, index=False)
        with pytest.raises(InputError, match=f"^{file}: scored other test documents; run stage"):
            evaluate_version(model, Version("v3"), text)


@pytest.mark.parametrize("version", ["v2", "v3", "v5"])
@torch.no_grad()
def test_evaluate_version_leaves_the_base_untouched(
    model: PreTrainedModel, text: HeldOutText, version: str
) -> None:
    kind, tokens = type(model), text.long_documents.tokens[:2]
    before = model(tokens).logits
    evaluate_version(model, Version(version), text)
    assert type(model) is kind
    assert not has_memory(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_evaluate_version_matches_direct_calls(
    model: PreTrainedModel, text: HeldOutText, version: str
) -> None:
    found, losses, cases, gates = evaluate_version(model, Version(version), text)
    base = perplexity.score_documents(model, text.long_documents, L)
    ceiling = perplexity.score_full_attention(model, text.long_documents, 32, 8)
    load(Version(version).model_folder("finetune"), model)
    on = perplexity.score_documents(model, text.long_documents, L)
    off = perplexity.score_documents(model, text.long_documents, L, "off")
    first = text.long_documents.first(1)
    shifted = perplexity.score_double_shift(model, first, L)
    same = perplexity.score_documents(model, first, L)
    short = perplexity.score_documents(model, text.samples, L)
    assert found["short"]["ppl"] == rounded(short.perplexity)
    assert found["documents"]["ppl"] == found["finetune"]["ppl_after"] == rounded(on.perplexity)
    assert found["documents"]["bits_per_byte"] == rounded(on.bits_per_byte)
    assert found["memory_off"]["ppl"] == rounded(off.perplexity)
    shown = found["double_shift"]
    assert shown["ppl"] == rounded(shifted.perplexity)
    assert shown["next_token_ppl"] == rounded(same.perplexity) != found["documents"]["ppl"]
    assert "bits_per_byte" not in shown
    assert found["memory_off"]["gain"] == pytest.approx(off.mean - on.mean, rel=1e-4, abs=1e-7)
    assert found["vs_segmented"]["nats"] == pytest.approx(on.mean - base.mean, rel=1e-4)
    share = (base.mean - on.mean) / (base.mean - ceiling.mean)
    assert found["vs_segmented"]["recovery"] == pytest.approx(share, rel=1e-4)
    pd.testing.assert_frame_equal(cases, score_retrieval(model, text.haystacks))
    assert {name: found[name] for name in ("passkey", "recall")} == retrieval_metrics(cases)
    assert found["added_parameters"] == added_parameters(model)
    sums = rows_of_protocol(losses, "memory_off")[["nats", "tokens"]].sum()
    assert sums["nats"] == pytest.approx(off.total)
    assert sums["tokens"] == off.tokens
    ((layer, module),) = segmented_layers(model).items()
    assert gates["layer"].unique() == [layer]
    expected = module.infini_attention.beta.detach().sigmoid().tolist()
    assert gates["gate"].tolist() == pytest.approx(expected, rel=1e-5)
    if version == "v3":
        assert found["alpha"] == {"layer0": rounded(module.alpha.item())}


def test_evaluate_version_scores_retrieval_of_a_window_version(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    found, _, cases, _ = evaluate_version(model, Version("v5"), text)
    load(Version("v5").model_folder("finetune"), model)
    pd.testing.assert_frame_equal(cases, score_retrieval(model, text.haystacks))
    assert {name: found[name] for name in ("passkey", "recall")} == retrieval_metrics(cases)
    assert (cases["log_prob"] != cases["log_prob_off"]).any()


def test_evaluate_version_matches_direct_calls_after_distillation(
    model: PreTrainedModel, text: HeldOutText
) -> None:
    found = evaluate_version(model, Version("v2"), text).metrics
    trained = json.loads(Path("reports/training/v2/distill.json").read_text())
    data = record_layer(model, 0, text.samples)
    untouched = perplexity.score_documents(model, text.samples, L).perplexity
    load(Version("v2").model_folder("distill"), model)
    distilled = perplexity.score_documents(model, text.samples, L).perplexity
    error = mean_squared_error(segmented_layers(model)[0], data)
    before = perplexity.score_documents(model, text.long_documents, L)
    first = text.long_documents.first(1)
    shifted = perplexity.score_double_shift(model, first, L)
    same = perplexity.score_documents(model, first, L)
    expected = {name: rounded(value) for name, value in trained["0"].items()} | {
        "test_loss": rounded(error),
        "ppl_original": rounded(untouched),
        "ppl_distilled": rounded(distilled),
    }
    gap = found["distill"].pop("ppl_gap")
    assert found["distill"] == expected
    assert gap == pytest.approx(distilled - untouched, rel=1e-3)
    tuned = found["finetune"]
    assert tuned["ppl_before"] == rounded(before.perplexity)
    assert tuned["double_shift_before"] == rounded(shifted.perplexity)
    assert tuned["double_shift_next_before"] == rounded(same.perplexity)
    assert tuned["ppl_improvement"] == rounded(tuned["ppl_before"] - tuned["ppl_after"])
    row = json.loads(Path("reports/training/v2/finetune.json").read_text())["0"]
    assert tuned["val_ppl"] == row["val_ppl"]
    assert "val_loss" not in tuned


def test_metrics_of_versions_have_the_same_keys(model: PreTrainedModel, text: HeldOutText) -> None:
    found = {name: evaluate_version(model, Version(name), text).metrics for name in ("v2", "v3")}
    replaced, beside = (set(flatten(metrics)) for metrics in found.values())
    distilled = {key for key in replaced if key.startswith("distill.")}
    assert {"distill.ppl_gap", "distill.test_loss", "distill.val_loss"} < distilled
    assert replaced - beside == distilled
    assert {key.partition(".")[0] for key in beside - replaced} == {"alpha", "control", "recovery"}
    untouched = perplexity_metrics(
        rows_of_protocol(pd.read_parquet(Version("base").losses), "segmented")
    )
    assert found["v3"]["finetune"]["ppl_before"] == untouched["ppl"]


def test_write_evaluations_joins_seeds(model: PreTrainedModel, text: HeldOutText) -> None:
    one = evaluate_version(model, Version("v3"), text)
    other = one._replace(
        metrics=one.metrics | {"alpha": {"layer0": one.metrics["alpha"]["layer0"] + 2.0}},
        gates=one.gates.assign(gate=one.gates["gate"] + 0.2),
    )
    write_evaluations(Version("v3"), {0: one})
    assert written("v3") == round_metrics(one.metrics, {})
    single = pd.read_csv(Version("v3").curves)
    assert single.columns.tolist() == ["curve", "x", "series", "value", "se"]
    write_evaluations(Version("v9"), {4: one, 7: other})
    metrics = written("v9")
    assert metrics.pop("spread") == {"alpha": {"layer0": 1.41}}
    assert metrics.pop("seeds") == 2
    alpha = metrics["alpha"].pop("layer0")
    assert alpha == pytest.approx(one.metrics["alpha"]["layer0"] + 1.0, abs=0.006)
    assert metrics == round_metrics(one.metrics, {}) | {"alpha": {}}
    losses = pd.read_parquet(Version("v9").losses)
    assert losses.columns.tolist() == [*one.losses.columns, "seed"]
    for seed in (4, 7):
        own = losses[losses["seed"] == seed].drop(columns="seed").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, one.losses, check_dtype=False)
    both = pd.read_csv(Version("v9").curves)
    found_gates, gates = (table[table["curve"] == "gate"] for table in (both, single))
    expected = gates["value"] + 0.1
    assert found_gates["value"].tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert found_gates["se"].tolist() == pytest.approx([0.2 / math.sqrt(2)] * len(gates), abs=1e-3)
    columns = ["curve", "x", "series"]
    nats = single[single["curve"] == "nats_by_document"]
    for seed in (4, 7):
        of_seed = nats.assign(series=nats["series"] + f" seed {seed}")
        found = both.merge(of_seed, on=columns, suffixes=("", "_one"))
        assert len(found) == len(nats) > 0
        assert found["value"].tolist() == found["value_one"].tolist()
    same, alone = (
        table[~table["curve"].str.contains("_exact_|_gain_|gate|nats_by_document")]
        for table in (both, single)
    )
    pd.testing.assert_frame_equal(same.reset_index(drop=True), alone.reset_index(drop=True))
