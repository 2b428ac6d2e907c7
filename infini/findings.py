"""What the numbers say, in sentences: computed, never written by hand."""

import math
from typing import Any

from infini.cells import Figure, figures, is_noise, show

# What the research log reports of its long documents, before and after finetuning.
SEED_LOG = {"v1": (18641.0, 568.3), "v2": (19701.1, 587.6)}

Metrics = dict[str, dict[str, Any]]


def percent(nats: Figure, sign: int = 1) -> str:
    """Nats a token as a change of perplexity: "0.35 ± 0.05 %"."""
    value, ratio = 100 * math.expm1(sign * nats.value), math.exp(sign * nats.value)
    return f"{show(abs(value), None if nats.error is None else 100 * ratio * nats.error)} %"


def recovered(tree: dict[str, Any]) -> str:
    """Context recovery as a card has it: "22 ± 3 %"."""
    value, error = figures(tree)["context_recovery.share"]
    return f"{show(100 * value, None if error is None else 100 * error)} %"


def of_base(tree: dict[str, Any]) -> str:
    """What there is to win."""
    f = figures(tree)
    base, ceiling = f["segmented.ppl"].value, f["sliding.ppl"].value
    return (
        f"The untouched base has perplexity {base:.2f} by segments and {ceiling:.2f} with full "
        f"attention: {100 * (1 - ceiling / base):.1f} % is what a memory could win."
    )


def of_version(version: str, tree: dict[str, Any]) -> str:
    """What a version is against the base, and what of it its memory brings."""
    f = figures(tree)
    against, gain = f["vs_base.nats"], f["memory.gain"]
    if is_noise(*against):
        place = "as good as the base by segments, within noise"
    else:
        place = (
            f"{percent(against)} {'above' if against.value > 0 else 'below'} the base by segments"
        )
    if is_noise(*gain):
        memory = "What its memory brings is within noise"
    else:
        verb = "lowers" if gain.value > 0 else "raises"
        memory = f"Its memory {verb} perplexity by {percent(gain, -1)}"
    return (
        f"**{version}**: {f['segmented.ppl'].value:.2f}, {place}. {memory} (kept empty: "
        f"{f['memory_off.ppl'].value:.2f}). Context recovery {recovered(tree)}. A passkey gains "
        f"{show(*f['passkey.gain'])} nats"
        f"{', within noise' if is_noise(*f['passkey.gain']) else ''}; "
        f"{100 * f['passkey.exact'].value:.0f} % are retrieved."
    )


def of_all(metrics: Metrics) -> list[str]:
    """The headline, and a sentence each."""
    versions = {v: tree for v, tree in metrics.items() if v != "base"}
    helps = [v for v, t in versions.items() if _pays(figures(t))]
    headline = (
        f"**Better than the untouched base, beyond noise: {', '.join(helps) or 'no version'}.**"
    )
    return [
        headline,
        of_base(metrics["base"]),
        *(of_version(v, tree) for v, tree in versions.items()),
    ]


def _pays(f: dict[str, Figure]) -> bool:
    """A version below the base whose memory does its part."""
    below, gain = f["vs_base.nats"], f["memory.gain"]
    return below.value < 0 < gain.value and not is_noise(*below) and not is_noise(*gain)


def of_the_seed(metrics: Metrics, audits: Metrics) -> list[str]:
    """What the research log's 19,701.1 and 587.6 measured, by our numbers."""
    before, after = SEED_LOG["v2"]
    f = figures(metrics["base"])
    next_token, shifted = f["double_shift.next_token_ppl"].value, f["double_shift.ppl"].value
    near, far = (abs(math.log(before / x)) for x in (shifted, next_token))
    what = "the token after next" if near < far else "the next token"
    sentences = [
        f"The untouched base, {show(next_token)} on the next token, scores {show(shifted)} by the "
        f"seed's loop. The log's {before:,} is a factor of {math.exp(near):.1f} from the latter "
        f"and of {math.exp(far):,.0f} from the former: it measured {what}, on whatever model."
    ]
    if {"labels_shifted_twice", "right_labels"} <= audits.keys():
        twice, right = (figures(audits[k]) for k in ("labels_shifted_twice", "right_labels"))

        def fall(found: dict[str, Figure], protocol: str) -> tuple[float, float]:
            return tuple(found[f"{when}.{protocol}.ppl"].value for when in ("before", "after"))  # type: ignore[return-value]

        shifts, rights, nexts = (
            fall(twice, "double_shift"),
            fall(right, "double_shift"),
            fall(twice, "segmented"),
        )
        retraces = math.log(shifts[0] / shifts[1]) > 2 * abs(math.log(rights[0] / rights[1]))
        sentences.append(
            f"Trained with labels shifted twice as well, v2 goes from {show(shifts[0])} to "
            f"{show(shifts[1])} by the seed's loop (a factor of {shifts[0] / shifts[1]:.1f}; the "
            f"log's {before:,} → {after}: {before / after:.1f}), and from {show(nexts[0])} to "
            f"{show(nexts[1])} on the next token; with the right labels the seed's loop goes from "
            f"{show(rights[0])} to {show(rights[1])}. "
            + (
                f"So {after} says how well a layer learnt to skip a token, nothing of its memory."
                if retraces and nexts[1] > nexts[0]
                else f"This does not explain {after}."
            )
        )
    return sentences
