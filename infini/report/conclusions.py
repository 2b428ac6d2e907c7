"""The research log's conclusions, each beside what every study measured of it."""

from collections.abc import Callable

from infini.report import findings
from infini.report.cells import Rounded, show
from infini.report.findings import LOG_AFTER, LOG_BEFORE, nats
from infini.report.results import Figures
from infini.report.studies import LOSSLESS, PARALLEL, REPLACED, Study


def beside_the_log(studies: list[Study]) -> dict[str, list[str]]:
    """By conclusion of the log, a sentence of every study that has a version that tells."""
    return {
        claim: [
            f"{study.name}: {said}" for study in studies if (said := measured(study)) is not None
        ]
        for claim, measured in CONCLUSIONS.items()
    }


def of_distillation(study: Study) -> str | None:
    """What replacing a layer costs before any long document."""
    return _each(study, (REPLACED, LOSSLESS), _gap)


def _gap(found: Figures) -> str | None:
    keys = [f"distill.ppl_{name}" for name in ("original", "distilled", "gap")]
    if any(key not in found for key in keys):
        return None
    first, last, gap = (found[key].value for key in keys)
    return f"{_ppl(first)} → {_ppl(last)} ({'+' * (gap > 0)}{_ppl(gap)})"


def of_the_fall_before(study: Study) -> str | None:
    """What 19,701 measured."""
    if "double_shift.ppl" not in study.base:
        return None
    return findings.of_the_log(study.base, {}, {})[0]


def of_the_fall_after(study: Study) -> str | None:
    """What 587.6 measured: the audit, where it was run; the log's recipe with right labels."""
    said = _each(study, (REPLACED,), _finetuned)
    if findings.shifted_and_right({name: study.asked[name] for name in study.audits}):
        audit = findings.of_the_log(study.base, study.audits, study.asked)[1]
        return f"{audit} {said or ''}".rstrip()
    return said


def _finetuned(found: Figures) -> str | None:
    if "finetune.ppl_before" not in found:
        return None
    first, last = found["finetune.ppl_before"].value, found["documents.ppl"].value
    said = f"on the next token {_ppl(first)} → {_ppl(last)}"
    if "double_shift.ppl" in found and "finetune.double_shift_before" in found:
        before, after = found["finetune.double_shift_before"], found["double_shift.ppl"]
        said += f", by the log's loop {_ppl(before.value)} → {_ppl(after.value)}"
    return said


def of_the_memory(study: Study) -> str | None:
    """Whether the replaced layer's memory is of its own document."""
    return _each(study, (REPLACED,), _swapped)


def _swapped(found: Figures) -> str | None:
    if (gain := found.get("memory.swapped_gain")) is None:
        return None
    so = "its memory holds something of its document" if gain.is_gain else "any memory does as well"
    return f"{nats(gain)} below another document's memory: {so}"


def of_the_dead_end(study: Study) -> str | None:
    """A layer replaced without any loss: was the replacing at fault?"""

    def said(found: Figures) -> str:
        parts = []
        if (gap := found.get("distill.ppl_gap")) is not None:
            parts.append(f"{_ppl(gap.value)} lost before training")
        if "short.nats" in found and "short.nats" in study.base:
            ratio = found["short.ppl"].value / study.base["short.ppl"].value
            parts.append(f"short texts {_per_cent(ratio - 1)} in perplexity after it")
        return ", ".join([*parts, _verdict(found)])

    return _each(study, (LOSSLESS,), said)


def of_the_hope(study: Study) -> str | None:
    """A memory beside the layer."""
    return _each(study, (PARALLEL,), _verdict)


def _verdict(found: Figures) -> str:
    """Gain, worth, and whether it pays."""
    said = [f"gain at equal bytes {nats(found['equal_bytes.gain'])}", findings.of_worth(found)]
    return f"{', '.join(said)}: it {'pays' if findings.pays(found) else 'does not pay'}"


CONCLUSIONS: dict[str, Callable[[Study], str | None]] = {
    "Distilling layer 0 costs perplexity: 25.0 → 46.8 (v1), 35.9 (v2)": of_distillation,
    f"On long text the distilled model has {LOG_BEFORE:,}": of_the_fall_before,
    f"Finetuned it has {LOG_AFTER}": of_the_fall_after,
    "Implied: its memory learnt to carry the text": of_the_memory,
    "Replacing layer 0 is a dead end: position is lost, later layers do not fit": of_the_dead_end,
    "Next: the layer kept, a memory in parallel": of_the_hope,
}


def _each(study: Study, kinds: tuple[str, ...], say: Callable[[Figures], str | None]) -> str | None:
    """ "v1: …; v2: …." of the versions of these kinds that have the figures."""
    said = {reading.version: say(reading.figures) for reading in study.of_kind(*kinds)}
    known = [f"{version}: {text}" for version, text in said.items() if text is not None]
    return f"{'; '.join(known)}." if known else None


def _ppl(value: float) -> str:
    return show(Rounded(value, 2))


def _per_cent(change: float) -> str:
    return f"{'+' * (change > 0)}{show(Rounded(100 * change, 1))} %"
