"""The verdict of a version."""

from infini.evaluation.estimates import estimates_of
from infini.report.verdict import beats_both, verdict
from report.toy_results import version_metrics


def test_verdict_of_a_version_that_beats_both() -> None:
    figures = estimates_of(version_metrics(38.0, 0.05, 0.005))
    assert beats_both(figures)
    assert verdict("v5", figures) == (
        "**v5 beats both**: 0.050 ± 0.010 nats per token below the sliding window of equal state "
        "bytes, 0.0050 ± 0.0010 below its shuffled-memory control."
    )


def test_verdict_of_a_version_above_its_baseline() -> None:
    figures = estimates_of(version_metrics(38.0, -0.05, -0.0015))
    assert not beats_both(figures)
    assert verdict("v3", figures) == (
        "**v3 does not beat both**: 0.050 ± 0.010 nats per token above the sliding window of equal "
        "state bytes, 0.0015 ± 0.0010 ~ above its shuffled-memory control."
    )


def test_verdict_without_a_control() -> None:
    line = verdict("v1", estimates_of(version_metrics(38.0, 0.05)))
    assert line.startswith("**v1 does not beat both**: 0.050 ± 0.010 nats per token below ")
    assert line.endswith("; no shuffled-memory control.")
