"""What the numbers say, in sentences of inline Markdown: computed, never written by hand."""

import math

from infini.evaluation.estimates import Estimate
from infini.report.cells import show_estimate
from infini.report.results import Figures
from infini.training.config import Audit

# What the research log reports of its long documents, before and after finetuning (its v2).
LOG_BEFORE, LOG_AFTER = 19701.1, 587.6


def of_all(figures: dict[str, Figures]) -> list[str]:
    """The headline, then a sentence on the base and one on every version."""
    versions = {version: found for version, found in figures.items() if version != "base"}
    helps = [version for version, found in versions.items() if _pays(found)]
    return [
        f"**Better than the untouched base, beyond noise: {', '.join(helps) or 'no version'}.**",
        of_base(figures["base"]),
        *(of_version(version, found) for version, found in versions.items()),
    ]


def _pays(found: Figures) -> bool:
    """A version below the base whose memory does its part."""
    below, gain = found["vs_base.nats"], found["memory.gain"]
    return below.value < 0 < gain.value and not below.is_noise and not gain.is_noise


def of_base(found: Figures) -> str:
    """What there is to win."""
    base, ceiling = found["segmented.ppl"].value, found["sliding.ppl"].value
    return (
        f"The untouched base has perplexity {base:.2f} by segments and {ceiling:.2f} with full "
        f"attention: {100 * (1 - ceiling / base):.1f} % is what a memory could win."
    )


def of_version(version: str, found: Figures) -> str:
    """What a version is against the base, and what of it its memory brings."""
    against, gain, key = found["vs_base.nats"], found["memory.gain"], found["passkey.gain"]
    if against.is_noise:
        place = "as good as the base by segments, within noise"
    else:
        side = "above" if against.value > 0 else "below"
        place = f"{percent(against)} {side} the base by segments"
    if gain.is_noise:
        memory = "What its memory brings is within noise"
    else:
        verb = "lowers" if gain.value > 0 else "raises"
        memory = f"Its memory {verb} perplexity by {percent(gain, -1)}"
    return (
        f"**{version}**: {found['segmented.ppl'].value:.2f}, {place}. {memory} (kept empty: "
        f"{found['memory_off.ppl'].value:.2f}). Context recovery {recovered(found)}. A passkey "
        f"gains {show_estimate(key)} nats{', within noise' if key.is_noise else ''}; "
        f"{100 * found['passkey.exact'].value:.0f} % are retrieved."
    )


def percent(nats: Estimate, sign: int = 1) -> str:
    """Nats a token as a change of perplexity: "0.35 ± 0.05 %"."""
    value, ratio = 100 * math.expm1(sign * nats.value), math.exp(sign * nats.value)
    error = None if nats.error is None else 100 * ratio * nats.error
    return f"{show_estimate(Estimate(abs(value), error))} %"


def recovered(found: Figures) -> str:
    """A version's context recovery: "22 ± 3 %"."""
    return f"{show_estimate(found['context_recovery.share'].scaled(100))} %"


def of_the_log(base: Figures, audited: dict[str, Figures], audits: dict[str, Audit]) -> list[str]:
    """What the research log's 19,701.1 and 587.6 measured, by our numbers."""
    next_token = base["double_shift.next_token_ppl"].value
    shifted = base["double_shift.ppl"].value
    near, far = (abs(math.log(LOG_BEFORE / x)) for x in (shifted, next_token))
    what = "the token after next" if near < far else "the next token"
    before = (
        f"The untouched base, {_show(next_token)} on the next token, scores {_show(shifted)} by "
        f"the log's loop. The log's {LOG_BEFORE:,} is a factor of {math.exp(near):.1f} from the "
        f"latter and of {math.exp(far):,.0f} from the former: it measured {what}, on whatever "
        "model."
    )
    pair = shifted_and_right({name: audits[name] for name in audited})
    if pair is None:
        after = (
            "No audit with labels shifted twice and its twin with the right labels was run: "
            "`dvc repro audits/dvc.yaml`."
        )
    else:
        after = _of_shifted_labels(audits[pair[0]].of, *(audited[name] for name in pair))
    return [before, after]


def shifted_and_right(audits: dict[str, Audit]) -> tuple[str, str] | None:
    """An audit with labels shifted twice, and the one that differs from it by right labels only."""
    for name, audit in audits.items():
        if audit.mistake == "labels_shifted_twice":
            for twin, other in audits.items():
                recipes = [(a.of, a.distill, a.finetune) for a in (audit, other)]
                if other.mistake == "none" and recipes[0] == recipes[1]:
                    return name, twin
    return None


def _of_shifted_labels(version: str, twice: Figures, right: Figures) -> str:
    """Whether training with labels shifted twice falls as the log does."""

    def fall(found: Figures, protocol: str) -> list[float]:
        return [found[f"{when}.{protocol}.ppl"].value for when in ("before", "after")]

    shifts, rights = fall(twice, "double_shift"), fall(right, "double_shift")
    nexts = fall(twice, "segmented")
    retraces = math.log(shifts[0] / shifts[1]) > 2 * abs(math.log(rights[0] / rights[1]))
    if retraces and nexts[1] > nexts[0]:
        so = f"So {LOG_AFTER} says how well a layer learnt to skip a token, nothing of its memory."
    else:
        so = f"This does not explain {LOG_AFTER}."
    return (
        f"Trained with labels shifted twice as well, {version} goes from {_show(shifts[0])} to "
        f"{_show(shifts[1])} by the log's loop (a factor of {shifts[0] / shifts[1]:.1f}; the "
        f"log's {LOG_BEFORE:,} → {LOG_AFTER}: {LOG_BEFORE / LOG_AFTER:.1f}), and from "
        f"{_show(nexts[0])} to {_show(nexts[1])} on the next token; with the right labels the "
        f"log's loop goes from {_show(rights[0])} to {_show(rights[1])}. {so}"
    )


def _show(value: float) -> str:
    return show_estimate(Estimate(value))
