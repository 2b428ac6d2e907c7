"""Sentences are pure functions of the figures."""

import pytest

from infini.evaluation.estimates import estimates_of
from infini.report import findings
from infini.training.config import Audit
from report.toy_results import AUDITS, FALLS, FIGURES, METRICS, RIGHT, STAYS, version


def test_findings_are_computed() -> None:
    headline, base, v1, v2 = findings.of_all(FIGURES)
    assert "beyond noise: v2." in headline
    assert "10.0 % is what a memory could win" in base
    assert "44.00, 10.0 ± 1.1 % above the base" in v1
    assert "What its memory brings is within noise" in v1
    assert "38.00, 4.97 ± 0.95 % below the base" in v2
    assert "memory lowers perplexity by 4.97 ± 0.95 %" in v2
    assert "Context recovery 49 ± 10 %" in v2
    assert "A passkey gains 0.10 ± 0.20 nats, within noise; 0 % are retrieved" in v2
    worse = estimates_of(version(38.0, 40.0, -0.01, 0.051, 0.49))
    assert "no version" in findings.of_all({**FIGURES, "v2": worse})[0]


def test_no_error_known_is_no_finding() -> None:
    alone = {k: v for k, v in METRICS["v2"].items() if k != "vs_base"} | {"vs_base": {"nats": -9.0}}
    headline, _, sentence = findings.of_all({"base": FIGURES["base"], "v2": estimates_of(alone)})
    assert "no version" in headline
    assert "as good as the base by segments, within noise" in sentence


@pytest.mark.parametrize(
    ("shifted", "word"), [(12000.0, "it measured the token after next"), (45.0, "the next token")]
)
def test_what_the_log_measured_is_computed(shifted: float, word: str) -> None:
    next_token = 40.0 if shifted > 100 else 5000.0
    base = estimates_of({"double_shift": {"ppl": shifted, "next_token_ppl": next_token}})
    assert word in findings.of_the_log(base, {}, {})[0]


def test_whether_the_audit_retraces_the_logs_fall_is_computed() -> None:
    said = [
        findings.of_the_log(FIGURES["base"], {"right": RIGHT, "twice": shifted}, AUDITS)[1]
        for shifted in (FALLS, STAYS)
    ]
    assert "says how well a layer learnt to skip a token" in said[0]
    assert "a factor of 20.0" in said[0]
    assert "19,701.1 → 587.6: 33.5" in said[0]
    assert "does not explain" in said[1]


def test_audits_are_found_by_what_they_are() -> None:
    audits = {
        "other version": Audit(of="v1", question="?"),
        "other finetuning": Audit(of="v8", question="?", finetune={"epochs": 7}),
        "other mistake": Audit(of="v8", question="?", mistake="padding_counted"),
        "a": Audit(of="v8", question="?", mistake="labels_shifted_twice"),
        "b": Audit(of="v8", question="other words"),
        "c": Audit(of="v8", question="?"),
    }
    assert findings.shifted_and_right(audits) == ("a", "b")
    run = dict.fromkeys(audits, RIGHT) | {"a": FALLS}
    assert "v8 goes from 12,000 to 600" in findings.of_the_log(FIGURES["base"], run, audits)[1]


@pytest.mark.parametrize("run", [[], ["twice"], ["right"]])
def test_a_missing_audit_is_named(run: list[str]) -> None:
    found = dict.fromkeys(run, RIGHT)
    sentence = findings.of_the_log(FIGURES["base"], found, AUDITS)[1]
    assert sentence.startswith("No audit with labels shifted twice and its twin")
    assert "`dvc repro audits/dvc.yaml`" in sentence
