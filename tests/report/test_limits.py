"""What limits a memory is computed: values by hand, of the toy base's window curve.

The base has 3.9 nats with 16 tokens, 3.65 with 64, 3.6 with 256, log 36 = 3.58352 with all.
"""

import copy
import math
from dataclasses import replace

import pytest

from infini.report import limits
from infini.report.studies import Reading
from report.toy_results import BASE, version
from report.toy_studies import PARAMS, read_with, reads, study

LEFT = 3.65 - math.log(36)  # 0.0665 behind a window of 64


def of(sentences: list[str], word: str) -> str:
    (found,) = [sentence for sentence in sentences if word in sentence]
    return found


def test_what_is_left_behind_a_window() -> None:
    assert limits.of_what_is_left(study({"v5": read_with(256, 0.01, 0.01)})) == (
        "Full attention (1,024 tokens) is 0.3165 nats a token below the last 16 tokens. Of that, "
        "79 % the last 64 and 95 % the last 256 have already; 0.0665 behind a window of 64 and "
        "0.0165 behind a window of 256 is all there is to win."
    )
    assert limits.of_what_is_left(study({})).endswith("the last 16 tokens.")


def test_the_memorys_bytes_are_also_bytes_of_exact_tokens() -> None:
    # 37 e^0.02 is what the window of equal bytes has
    said = of(limits.of_study(study({"v5": reads(37.0, 0.02, 0.01)})), "carries")
    won, bought = 3.65 - math.log(37), 3.65 - math.log(37) - 0.02
    assert said == (
        "**v5 at window 64** carries 20,000 bytes behind its window. As exact keys and values they "
        f"are 20 tokens more, which win {bought:.4f} of the {LEFT:.4f} nats left "
        f"({100 * bought / LEFT:.0f} %). The memory, training included, wins {won:.4f} "
        f"({100 * won / LEFT:.0f} %)."
    )


@pytest.mark.parametrize(("worth", "mere"), [(0.01, "74 %"), (1.0, "0 %"), (-1.0, "100 %")])
def test_how_much_is_adaptation(worth: float, mere: str) -> None:
    said = of(limits.of_study(study({"v5": reads(37.0, 0.02, worth)})), "adaptation")
    assert f"has {mere} too: adaptation to the text. The memory's worth is {worth:.4f}".replace(
        "-", "−"
    ) in said.replace("-", "−")


def test_what_both_win_is_set_beside_each_alone() -> None:
    trees = {
        "v5": reads(38.0, 0.01, 0.001),
        "v6": reads(37.5, 0.02, 0.002),
        "v7": reads(37.0, 0.03, 0.003),
    }
    both, pairs, matrix = (3.65 - math.log(ppl) for ppl in (37.0, 37.5, 38.0))
    assert of(limits.of_study(study(trees)), "alone") == (
        f"At window 64, v7 is {both:.4f} below the plain window, the kept pairs alone (v6) "
        f"{pairs:.4f} ({100 * pairs / both:.0f} %) and the matrix alone (v5) {matrix:.4f} "
        f"({100 * matrix / both:.0f} %). Gain at equal bytes: v7 0.030 ± 0.010, "
        "v6 0.020 ± 0.010, v5 0.010 ± 0.010; worth: v7 0.0030 ± 0.0010, v6 0.0020 ± 0.0010, "
        "v5 0.0010 ± 0.0010."
    )
    assert not [s for s in limits.of_study(study({"v7": trees["v7"]})) if "alone" in s]


def test_only_what_is_trained_alike_is_set_beside_both() -> None:
    trees = {"v6": reads(37.5, 0.02, 0.002), "v7": reads(37.0, 0.03, 0.003)}
    other = copy.deepcopy(PARAMS)
    other["adapters"]["v6"]["question_share"] = 1.0
    assert not [s for s in limits.of_study(study(trees, params=other)) if "alone" in s]


def test_other_windows_of_the_same_weights() -> None:
    said = of(limits.of_study(study({"v5": read_with(256, 0.002, 0.004)})), "other windows")
    assert said == (
        "The same weights with other windows, worth: v5 0.0100 ± 0.0010 at 64 "
        "(gain 0.020 ± 0.010), 0.0040 ± 0.0010 at 256 (gain 0.002 ± 0.010)."
    )


def test_the_aim_is_missed_or_reached() -> None:
    # recovery.share is worth / 0.1; by gain: gain / what the window of equal bytes leaves
    found = study({"v5": read_with(256, 0.002, 0.004), "v6": reads(37.0, 0.02, 0.05)})
    strict = 100 * 0.02 / (math.log(37) + 0.02 - math.log(36))
    assert limits.of_the_aim(found, 64) == (
        "Aimed at, with a window of 64: 30 % recovery. Best is v6: by worth 50.0 ± 1.0 %, by gain "
        f"{strict:.0f} ± {strict / 2:.0f} %. By worth the aim is reached."
    )
    missed = limits.of_the_aim(found, 256)
    assert missed is not None
    assert "Best is v5: by worth 4.0 ± 1.0 %" in missed
    assert missed.endswith("is missed by 16.0 points.")
    assert limits.of_the_aim(found, 128) is None


def test_far_keys_are_found_or_missed() -> None:
    trees = {"v5": reads(37.0, 0.02, 0.01), "v6": reads(37.0, 0.02, 0.01)}
    for name, exact in (("v5", 0.25), ("v6", 0.95)):
        trees[name]["passkey"] |= {"exact": exact, "exact_off": 0.0}
    near = study(trees)
    assert limits.of_far_keys(near) is None  # 512 tokens and a depth of 0.5: four windows
    asked = near.params["evaluate"] | {"passkey": {"lengths": [5, 10], "depths": [0.0, 0.1]}}
    far = replace(near, params=near.params | {"evaluate": asked})
    assert limits.of_far_keys(far) == (
        "Aimed at: 90 % of pass keys 16 windows back. Best is v6: 95 %, its window alone 0 %. "
        "The aim is reached."
    )
    missed = replace(far, readings=far.readings[:1])
    assert limits.of_study(missed)[-1].endswith(
        "Best is v5: 25 %, its window alone 0 %. The aim is missed by 65 points."
    )


def test_the_best_pays_before_it_gains() -> None:
    found = study({"v5": reads(37.0, 0.03, 0.003), "v6": reads(37.0, 0.9, 0.001)})
    assert [pays.version for w in (64, 256) if (pays := limits.best(found, w))] == ["v5"]


def test_whatever_is_missing_is_left_out() -> None:
    assert limits.of_study(study({})) == [limits.of_what_is_left(study({}))]
    by_segments = limits.of_study(study({"v1": version(44.0, 44.0, -0.13)}))
    assert by_segments[1:] == ["Passkeys retrieved: v1 0 %."]
    no_control = reads(37.0, 0.02, 0.01)
    del no_control["control"], no_control["recovery"]
    assert not [s for s in limits.of_study(study({"v5": no_control})) if "worth" in s]


def test_a_window_that_the_base_was_not_read_with_is_that_of_an_empty_memory() -> None:
    def of_48(off: float | None) -> Reading:
        (reading,) = study({"v5": reads(37.0, 0.02, 0.01)}).readings
        figures = dict(reading.figures)
        if off is not None:
            figures["memory_off.nats"] = figures["documents.nats"]._replace(value=off)
        return Reading("v5", reading.kind, 48, True, 1, figures)

    known = study({}, readings=[of_48(3.7)])
    assert limits.left(known, 48) == pytest.approx(3.7 - math.log(36))
    unknown = study({}, readings=[of_48(None)])
    assert limits.left(unknown, 48) is None
    assert not [said for said in limits.of_study(unknown) if "carries" in said]


def test_where_full_attention_is_no_better_nothing_is_left() -> None:
    worse = {**BASE, "full": {**BASE["full"], "nats": 4.0}}
    found = study({"base": worse, "v5": reads(37.0, 0.02, 0.01)})
    assert limits.share_of_rest(found, found.readings[0].figures) is None
    assert not [said for said in limits.of_study(found) if "carries" in said]
