"""Sentences are pure functions of the figures."""

import pytest

from infini.evaluation.estimates import Estimate, estimates_of
from infini.report import findings
from infini.training.config import Audit
from report.toy_results import AUDITS, CURVE, FALLS, FIGURES, RIGHT, STAYS, version


def test_findings_are_computed() -> None:
    answer, base, below, v1, v2, passkeys = findings.of_all(FIGURES, CURVE)
    assert answer == (
        "**v2 pays**: gain at equal bytes 0.050 ± 0.010 nats a token, "
        "worth over its control 0.0050 ± 0.0010 nats a token."
    )
    assert "36.00 with full attention, 49.40 with its last 16 tokens, and 40.00 in blind" in base
    assert below.startswith("v2 lies below the base's window curve")
    assert v1 == (
        "**v1**, perplexity 44.00, reads like a plain window of 35 tokens for the bytes of 60. "
        "Gain at equal bytes −0.130 ± 0.010 nats a token (the base with its last 64 tokens: "
        "38.64). Keeping its memory empty changes nothing beyond noise; it has no control, so how "
        "much is adaptation to the text is open."
    )
    assert "a token, of which 90 % is mere adaptation to the text" in v2  # 1 − 0.005 / 0.0513
    assert "Worth over its control 0.0050 ± 0.0010 nats a token: 5.0 ± 1.0 % of what lies" in v2
    assert passkeys == "Passkeys retrieved: v1 0 %, v2 0 %."


def test_what_is_retrieved_is_beside_what_the_base_can() -> None:
    base = FIGURES["base"] | {
        name: Estimate(0.4) for name in ("passkey.exact_full", "recall.exact")
    }
    v5 = {"passkey.exact": Estimate(0.126), "recall.exact": Estimate(1.0)}
    v6 = {"passkey.exact": Estimate(0.0)}
    assert findings.of_retrieval({"base": base, "v5": v5, "v6": v6}) == (
        "Passkeys retrieved: v5 13 %, v6 0 %, and the base with full attention, of those that it "
        "holds, 40 %. Codes retrieved: v5 100 %."
    )


def of(*trees: dict) -> list[str]:
    names = [f"v{i}" for i in range(3, 3 + len(trees))]
    found = {name: estimates_of(tree) for name, tree in zip(names, trees, strict=True)}
    return findings.of_all({"base": FIGURES["base"], **found}, CURVE)


def test_where_none_pays_the_nearest_is_named() -> None:
    far, near = version(38.0, 40.0, -0.3, 0.009), version(38.0, 40.0, -0.03, 0.001)
    said = of(far, near, version(38.0, 40.0, 0.3))
    assert said[0] == (
        "**No version pays**: nearest is v4: gain at equal bytes −0.030 ± 0.010 nats a token, "
        "worth over its control 0.0010 ± 0.0010 nats a token (noise)."
    )
    assert said[2].startswith("v5 lies below")  # without a control it cannot pay
    alone = of(version(38.0, 40.0, 0.3))[0]
    assert alone.endswith(
        "0.300 ± 0.010 nats a token; without a control its memory's worth is not known."
    )
    assert of()[0] == "**No version pays**: there is none."
    assert of(far)[2].startswith("Nothing lies below")


def test_several_that_pay_are_all_named() -> None:
    said = of(version(38.0, 40.0, 0.05, 0.005), version(38.0, 40.0, 0.06, 0.005))
    assert said[0].startswith("**v3 and v4 pay.** v3: gain at equal bytes 0.050 ± 0.010")
    assert "; v4: gain at equal bytes 0.060 ± 0.010" in said[0]
    assert said[2].startswith("v3 and v4 lie below")


@pytest.mark.parametrize(
    ("ppl", "like"),
    [(60.0, "fewer than 20 tokens"), (30.0, "more than 1,024 tokens"), (38.4747, "68 tokens")],
)
def test_what_a_version_reads_like_is_a_plain_window(ppl: float, like: str) -> None:
    assert f"reads like a plain window of {like} for the bytes of 60." in of(version(ppl, 70, 0))[3]


@pytest.mark.parametrize(
    ("off", "worth", "words"),
    [
        (40.0, 0.2, "loses 0.051 ± 0.010 nats a token, of which 0 % is mere"),
        (40.0, -0.2, "loses 0.051 ± 0.010 nats a token, of which 100 % is mere"),
        (36.0, 0.2, "wins 0.054 ± 0.010 nats a token."),
    ],
)
def test_what_keeping_the_memory_empty_does(off: float, worth: float, words: str) -> None:
    assert f"Keeping its memory empty {words}" in of(version(38.0, off, 0.0, worth))[3]


def test_no_error_known_is_no_finding() -> None:
    tree = version(38.0, 40.0, 9.0, 0.005)
    del tree["equal_bytes"]["gain_se"], tree["passkey"]
    said = of(tree)
    assert said[2].startswith("Nothing lies below")
    assert said[4] == "Passkeys retrieved: none were asked for."


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
