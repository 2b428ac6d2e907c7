"""Tables and sentences are pure functions of the metrics."""

import pandas as pd
import pytest

from infini import findings, params, tables
from infini.results import loss_curve


def version(ppl: float, off: float, against: float, gain: float, share: float) -> dict:
    return {
        "distill": {"epochs": 10, "ppl_gap": 20.0 if ppl > 40 else 10.0},
        "segmented": {"ppl": ppl, "ppl_se": 0.5, "bits_per_byte": 1.2},
        "memory_off": {"ppl": off},
        "vs_base": {"nats": against, "nats_se": 0.01},
        "memory": {"gain": gain, "gain_se": 0.01},
        "context_recovery": {"share": share, "share_se": 0.1},
        "passkey": {"gain": 0.1, "gain_se": 0.2, "exact": 0.0},
    }


METRICS = {
    "base": {
        "segmented": {"ppl": 40.0},
        "sliding": {"ppl": 36.0, "bits_per_byte": 1.1},
        "double_shift": {"ppl": 12000.0, "next_token_ppl": 40.0},
    },
    "v1": version(44.0, 44.0, 0.095, 0.0, -0.9),
    "v2": version(38.0, 40.0, -0.051, 0.051, 0.49),
}


def test_v1_v2_change_as_the_seeds_table_has_it() -> None:
    versus = tables.versus({v: METRICS[v] for v in ("v1", "v2")}, tables.SEED_ROWS)
    assert list(versus.columns) == ["v1", "v2", "change"]
    assert versus.loc["Distillation epochs"].tolist() == ["10", "10", "+0"]
    assert versus.loc["PPL gap (distillation)"].tolist() == ["20.0000", "10.0000", "−50.0 %"]
    assert "Original PPL" not in versus.index  # no version has it


def test_a_third_version_gets_its_own_columns() -> None:
    three = {"v1": METRICS["v1"], "v2": METRICS["v2"], "v9": METRICS["v2"]}
    columns = tables.versus(three, tables.SEED_ROWS).columns
    assert list(columns) == ["v1", "v2", "v2 vs v1", "v9", "v9 vs v1"]


def test_all_versions_mark_noise_and_show_the_ceiling() -> None:
    table = tables.all_versions(METRICS)
    assert list(table.index) == ["base", "base, full attention", "v1", "v2"]
    assert table.loc["base, full attention", "PPL by segments"] == "36.0000"
    assert table.loc["v2", "PPL by segments"] == "38.00 ± 0.50"
    assert table.loc["v2", "memory's gain, nats"] == "0.051 ± 0.010"
    assert table.loc["v1", "memory's gain, nats"] == "0.000 ± 0.010 ~"
    assert table.loc["v2", "passkey gain, nats"] == "0.10 ± 0.20 ~"
    assert table.loc["v1", "parameters added"] == "–"


def test_findings_are_computed() -> None:
    headline, base, v1, v2 = findings.of_all(METRICS)
    assert "beyond noise: v2." in headline
    assert "10.0 % is what a memory could win" in base
    assert "44.00, 10.0 ± 1.1 % above the base" in v1
    assert "What its memory brings is within noise" in v1
    assert "38.00, 4.97 ± 0.95 % below the base" in v2
    assert "memory lowers perplexity by 4.97 ± 0.95 %" in v2
    assert "Context recovery 49 ± 10 %" in v2
    worse = {**METRICS, "v2": version(38.0, 40.0, -0.01, 0.051, 0.49)}
    assert "no version" in findings.of_all(worse)[0]


@pytest.mark.parametrize(
    ("shifted", "word"), [(12000.0, "it measured the token after next"), (45.0, "the next token")]
)
def test_what_the_seed_measured_is_computed(shifted: float, word: str) -> None:
    base = METRICS["base"] | {"double_shift": {"ppl": shifted, "next_token_ppl": 5000.0}}
    if shifted > 100:
        base["double_shift"] = {"ppl": shifted, "next_token_ppl": 40.0}
    (sentence,) = findings.of_the_seed({"base": base}, {})
    assert word in sentence


def audit(segmented: tuple[float, float], shifted: tuple[float, float]) -> dict:
    return {
        when: {"segmented": {"ppl": a}, "double_shift": {"ppl": b}}
        for when, a, b in zip(("before", "after"), segmented, shifted, strict=True)
    }


def test_whether_the_audit_retraces_the_seeds_fall_is_computed() -> None:
    right = audit((90.0, 50.0), (12000.0, 11000.0))
    falls = audit((90.0, 900.0), (12000.0, 600.0))
    stays = audit((90.0, 900.0), (12000.0, 11000.0))
    said = [
        findings.of_the_seed(METRICS, {"right_labels": right, "labels_shifted_twice": shifted})[1]
        for shifted in (falls, stays)
    ]
    assert "says how well a layer learnt to skip a token" in said[0]
    assert "a factor of 20.0" in said[0]
    assert "does not explain" in said[1]


def test_settings_that_differ_are_marked(project: object) -> None:
    replacements, adapters = params.read("replacements", "adapters")
    table, differ = tables.settings({**replacements, **adapters})
    assert table.loc["distill.patience"].tolist() == ["none", "2", "–"]
    assert {"distill.patience", "layer.update", "finetune.lr"} <= differ
    assert "layer.position" not in differ
    assert "alpha" not in differ  # one version alone has it


def test_curves_mark_the_best_epoch_and_the_stop() -> None:
    curve = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "val_loss": [3.0, 2, 4]})
    table = loss_curve(curve, {"epochs": 3, "best_epoch": 2, "stopped_early": 1}, "v2")
    assert len(table) == 6
    assert set(table.loc[table["event"] == "best", "epoch"]) == {2}
    assert set(table.loc[table["event"] == "stopped", "epoch"]) == {3}
