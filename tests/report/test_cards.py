"""The headline: the answer first, what pays before what does not, and what the latter lacks."""

import math

import pytest

from infini.evaluation.estimates import Estimate, estimates_of
from infini.report.cards import lacking, of_all, relative
from infini.report.results import Figures
from report.toy_results import BASE, version


def figures(**trees: dict) -> dict[str, Figures]:
    return {name: estimates_of(tree) for name, tree in {"base": BASE, **trees}.items()}


def test_what_pays_comes_behind_the_answer_and_the_base_last() -> None:
    found = figures(v1=version(44.0, 44.0, -0.13), v2=version(38.0, 40.0, 0.05, 0.005))
    answer, *others = of_all(found)
    assert (answer.label, answer.value) == ("Does the memory pay?", "Yes: v2")
    assert [(card.label, card.value) for card in others] == [
        ("v2 pays", "4.9 % lower"),
        ("v1 does not pay", "13.9 % higher"),
        ("Untouched base", "36.00"),
    ]
    assert others[0].note == (
        "in perplexity, against the untouched base with a plain window of the same bytes; its "
        "memory is worth 0.0050 ± 0.0010 nats a token over its control"
    )


def test_if_none_pays_the_first_card_says_what_the_nearest_lacks() -> None:
    far, near = version(44.0, 44.0, -0.13), version(39.0, 40.0, -0.03, 0.001)
    answer = of_all(figures(v1=far, v3=near))[0]
    assert answer.value == "No"
    assert answer.note == (
        "nearest is v3: to pay it lacks 0.030 ± 0.010 nats a token and a memory that is worth more "
        "than noise over its control"
    )
    assert of_all(figures())[0].note == "there is no version"


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.05, "4.9 % lower"),
        (-0.0388, "4.0 % higher"),
        (0.0053, "0.53 % lower"),
        (-3.077, "21.7 times as high"),
        (-math.log(1234), "1,234 times as high"),
        (2.0, "86.5 % lower"),
    ],
)
def test_a_perplexity_against_that_of_equal_bytes(gain: float, said: str) -> None:
    assert relative({"equal_bytes.gain": Estimate(gain, 0.001)}) == said


@pytest.mark.parametrize(
    ("gain", "worth", "lacks"),
    [
        (Estimate(-0.1, 0.01), None, "0.100 ± 0.010 nats a token and a control"),
        (Estimate(0.01, 0.01), Estimate(0.1, 0.01), "a gain beyond noise"),
        (Estimate(0.1, 0.01), Estimate(-0.1, 0.01), "a memory that is worth more"),
        (Estimate(0.1, 0.01), Estimate(0.1, 0.01), "the same with every seed"),
    ],
)
def test_what_a_version_lacks(gain: Estimate, worth: Estimate | None, lacks: str) -> None:
    found = {"equal_bytes.gain": gain} | ({} if worth is None else {"control.worth": worth})
    assert lacking(found).startswith(lacks)
