"""Verdict of a version: whether it beats the baseline of equal state bytes and its control."""

from infini.evaluation.estimates import Estimate
from infini.report.cells import show
from infini.report.policies import ScoredPolicy
from infini.report.results import Figures


def beats_both(figures: Figures) -> bool:
    """Return whether both gains are above two standard errors, with every seed."""
    return figures["beats_both"].value == 1


def is_undecided(figures: Figures) -> bool:
    """Return whether it beats both with the seeds that were compared, and some were not."""
    return "undecided" in figures and figures["undecided"].value == 1


def verdict(version: str, figures: Figures, policy: ScoredPolicy | None = None) -> str:
    """Return a version's verdict: one line of Markdown.

    Args:
        version: Its name.
        figures: Its metrics.
        policy: Its baseline; None: no policy was scored, the plain window is the baseline.
    """
    answer = "beats both" if beats_both(figures) else "does not beat both"
    answer = "is undecided" if is_undecided(figures) else answer
    baseline = _distance(figures["baseline.gain"], "nats per token ")
    control = figures.get("control.gain")
    second = (
        "; no shuffled-memory control"
        if control is None
        else f", {_distance(control)} its shuffled-memory control"
    )
    opponent = "the sliding window" if policy is None else f"the best policy ({policy.label})"
    seeds, scored = figures.get("seeds"), figures.get("baseline.seeds")
    if seeds is not None and scored is not None and scored.value < seeds.value:
        second += f"; {scored.value:.0f} of {seeds.value:.0f} seeds is compared with that policy"
    return f"**{version} {answer}**: {baseline} {opponent} of equal state bytes{second}."


def _distance(gain: Estimate, unit: str = "") -> str:
    amount = show(gain._replace(value=abs(gain.value)))
    return f"{amount} {unit}{'above' if gain.value < 0 else 'below'}"
