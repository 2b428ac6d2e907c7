"""What the numbers say, in sentences of inline Markdown: computed, never written by hand."""

import math

from infini.evaluation.estimates import Estimate
from infini.report.cells import show_estimate
from infini.report.results import Figures
from infini.report.window_curve import FULL, WindowCurve
from typing import Any

# What the research log reports of its long documents, before and after finetuning (its v2).
LOG_BEFORE, LOG_AFTER = 19701.1, 587.6
APART = 3  # a factor between two readings of it that tells which it is


def of_all(figures: dict[str, Figures], curve: WindowCurve) -> list[str]:
    """Whether the memory pays, what there is to win, and a sentence on every version."""
    versions = {version: found for version, found in figures.items() if version != "base"}
    return [
        answer(versions),
        of_base(figures["base"], curve),
        of_the_curve(versions),
        *(of_version(version, found, curve) for version, found in versions.items()),
        of_retrieval(figures),
    ]


def pays(found: Figures) -> bool:
    """Below the base's window of equal bytes and below its control; with every seed."""
    return found["pays"].value == 1


def answer(versions: dict[str, Figures]) -> str:
    """Does the memory pay? If not: how far the nearest version is from it."""
    paying = [version for version, found in versions.items() if pays(found)]
    if paying:
        if len(paying) == 1:
            return f"**{paying[0]} pays**: {gain_and_worth(versions[paying[0]])}."
        each = "; ".join(f"{version}: {gain_and_worth(versions[version])}" for version in paying)
        return f"**{listed(paying)} pay.** {each}."
    if not versions:
        return "**No version pays**: there is none."
    name = nearest(versions)
    return f"**No version pays**: nearest is {name}: {gain_and_worth(versions[name])}."


def nearest(versions: dict[str, Figures]) -> str:
    """The version that is nearest to paying: by the smaller of its gain and its worth."""

    def nearness(version: str) -> tuple[bool, float]:
        found = versions[version]
        known = [found[key].value for key in ("equal_bytes.gain", "control.worth") if key in found]
        return "control.worth" in found, min(known)  # without a control none can pay

    return max(versions, key=nearness)


def gain_and_worth(found: Figures) -> str:
    """ "gain at equal bytes … nats a token, worth over its control …"."""
    gain = f"gain at equal bytes {nats(found['equal_bytes.gain'])}"
    if "control.worth" not in found:
        return f"{gain}; without a control its memory's worth is not known"
    return f"{gain}, worth over its control {nats(found['control.worth'])}"


def of_base(found: Figures, curve: WindowCurve) -> str:
    """What there is to win."""
    smallest = curve.points[0]
    return (
        f"The untouched base has perplexity {found['full.ppl'].value:.2f} with full attention, "
        f"{math.exp(smallest.nats.value):.2f} with {_window(smallest.name)}, and "
        f"{found['segmented.ppl'].value:.2f} in blind segments, the log's comparison."
    )


def of_the_curve(versions: dict[str, Figures]) -> str:
    """Whether anything lies below the base's window curve."""
    below = [version for version, found in versions.items() if found["equal_bytes.gain"].is_gain]
    if not below:
        return "Nothing lies below the base's window curve beyond two standard errors."
    verb = "lies" if len(below) == 1 else "lie"
    return f"{listed(below)} {verb} below the base's window curve beyond two standard errors."


def of_version(version: str, found: Figures, curve: WindowCurve) -> str:
    """What a version gains at equal bytes, and what of it its memory brings."""
    window, ppl = show_estimate(found["equal_bytes.window"]), found["equal_bytes.ppl"].value
    return (
        f"**{version}**, perplexity {found['documents.ppl'].value:.2f}, "
        f"{reads_like(found, curve)}. Gain at equal bytes {nats(found['equal_bytes.gain'])} (the "
        f"base with {_window(window)}: {ppl:.2f}). {_of_memory(found)}"
    )


def reads_like(found: Figures, curve: WindowCurve) -> str:
    """What the base needs to read as well: "reads like a plain window of 22 tokens …"."""
    return (
        f"reads like a plain window of {tokens_to_read(found, curve)} for the bytes of "
        f"{curve.tokens(found['bytes.total'].value):,.0f}"
    )


def tokens_to_read(found: Figures, curve: WindowCurve) -> str:
    """How many tokens the base needs to read as well as a version: "22 tokens"."""
    needed = curve.bytes_to_read(found["documents.nats"].value)
    if needed == 0:
        return f"fewer than {curve.tokens(curve.points[0].carried):,.0f} tokens"
    if needed == math.inf:
        return f"more than {curve.tokens(curve.points[-1].carried):,.0f} tokens"
    return f"{curve.tokens(needed):,.0f} tokens"


def _of_memory(found: Figures) -> str:
    """Its worth, and how much of what looks like memory is adaptation to the text."""
    empty, worth = _kept_empty(found), found.get("control.worth")
    if worth is None:
        return f"{empty}; it has no control, so how much is adaptation to the text is open."
    off = found["memory.gain"]
    if off.is_gain:
        adapted = 100 * min(1.0, max(0.0, 1 - worth.value / off.value))
        empty += f", of which {adapted:.0f} % is mere adaptation to the text"
    share = found["recovery.share"].scaled(100)
    return (
        f"Worth over its control {nats(worth)}: {show_estimate(share)} %{_noise(share)} of what "
        f"lies between that window and full attention. {empty}."
    )


def _kept_empty(found: Figures) -> str:
    off = found["memory.gain"]
    if off.is_noise:
        return "Keeping its memory empty changes nothing beyond noise"
    amount = nats(off._replace(value=abs(off.value)))
    return f"Keeping its memory empty {'loses' if off.value > 0 else 'wins'} {amount}"


def of_worth(found: Figures) -> str:
    """What its memory is worth, if that was asked."""
    worth = found.get("control.worth")
    return "it has no control" if worth is None else f"worth over its control {nats(worth)}"


def of_retrieval(figures: dict[str, Figures]) -> str:
    """How many of the facts asked for each retrieves, and the base where it sees all of a text."""
    said = []
    for task, facts in (("passkey", "Passkeys"), ("recall", "Codes")):
        key, full = f"{task}.exact", figures["base"].get(f"{task}.exact_full")
        each = [f"{v} {share(f[key])}" for v, f in figures.items() if v != "base" and key in f]
        if each and full is not None:
            each.append(f"and the base with full attention, of those that it holds, {share(full)}")
        if each or task == "passkey":
            said.append(f"{facts} retrieved: {', '.join(each) or 'none were asked for'}.")
    return " ".join(said)


def share(figure: Estimate) -> str:
    """ "90 %"."""
    return f"{100 * figure.value:.0f} %"


def _window(size: str) -> str:
    return "full attention" if size == FULL else f"its last {size} tokens"


def nats(difference: Estimate) -> str:
    """ "0.0053 ± 0.0013 nats a token", and whether noise may explain it."""
    return f"{show_estimate(difference)} nats a token{_noise(difference)}"


def _noise(difference: Estimate) -> str:
    return " (noise)" if difference.is_noise else ""


def listed(names: list[str]) -> str:
    """ "v1, v2 and v3"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def of_the_log(base: Figures, audited: dict[str, Figures], audits: dict[str, Any]) -> list[str]:
    """What the research log's 19,701.1 and 587.6 measured, by our numbers."""
    next_token = base["double_shift.next_token_ppl"].value
    shifted = base["double_shift.ppl"].value
    near, far = (abs(math.log(LOG_BEFORE / x)) for x in (shifted, next_token))
    what = "the token after next" if near < far else "the next token"
    so = f"it measured {what}, on whatever model"
    if abs(near - far) < math.log(APART):
        so = "the two are too near each other to tell which it measured"
    before = (
        f"The untouched base, {_show(next_token)} on the next token, scores {_show(shifted)} by "
        f"the log's loop. The log's {LOG_BEFORE:,} is a factor of {math.exp(near):.1f} from the "
        f"latter and of {math.exp(far):,.0f} from the former: {so}."
    )
    if not audits:
        return [before]
    pair = shifted_and_right({name: audits[name] for name in audited})
    if pair is None:
        after = (
            "No audit with labels shifted twice and its twin with the right labels was run: "
            "`dvc repro audits/dvc.yaml`."
        )
    else:
        after = _of_shifted_labels(audits[pair[0]].of, *(audited[name] for name in pair))
    return [before, after]


def shifted_and_right(audits: dict[str, Any]) -> tuple[str, str] | None:
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
