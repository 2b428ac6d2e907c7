"""What limits a memory: sentences of inline Markdown, computed from a study's figures.

Nats are a token's. "Left" by a window is what full attention is below it: all that a memory of
what lies behind the window could win.
"""

from typing import Any

from infini.evaluation.estimates import Estimate
from infini.report import findings
from infini.report.cells import Rounded, show, show_estimate
from infini.report.findings import listed, nats
from infini.report.results import Figures
from infini.report.studies import BOTH, KEPT, MATRIX, Reading, Study
from infini.training.config import Adapter

# Recovery that is aimed at, by tokens of the window.
AIM = {64: 0.30, 256: 0.20}
# Pass keys retrieved that are aimed at, so many windows back.
AIM_KEYS, FAR = 0.90, 16


def of_study(study: Study) -> list[str]:
    """All sentences that its figures allow."""
    chosen = [found for window in study.windows if (found := best(study, window))]
    said = [
        of_what_is_left(study),
        *(of_bytes(study, reading) for reading in chosen),
        *(of_adaptation(study, reading) for reading in chosen),
        *(of_parts(study, window) for window in study.windows),
        of_longer_windows(study),
        *(of_the_aim(study, window) for window in study.windows),
        findings.of_retrieval({"base": study.base} | {r.version: r.figures for r in study.versions})
        if study.versions
        else None,
        of_far_keys(study),
    ]
    return [sentence for sentence in said if sentence]


def best(study: Study, window: int) -> Reading | None:
    """Of what is read with a window: what pays before what does not, then by gain."""

    def rank(reading: Reading) -> tuple[bool, float]:
        return findings.pays(reading.figures), reading.figures["equal_bytes.gain"].value

    return max(study.at(window), key=rank, default=None)


def plain(study: Study, window: int) -> float | None:
    """Nats of the base with this window and no memory."""
    if (known := study.base.get(f"window.w{window}.nats")) is not None:
        return known.value
    off = [r.figures["memory_off.nats"].value for r in study.at(window) if _has_off(r)]
    return off[0] if off else None


def left(study: Study, window: int) -> float | None:
    """Nats that full attention is below that."""
    nats_of = plain(study, window)
    return None if nats_of is None else nats_of - study.base["full.nats"].value


def below(study: Study, reading: Reading) -> float | None:
    """Nats that a version is below the base with the same window."""
    nats_of = None if reading.window is None else plain(study, reading.window)
    return None if nats_of is None else nats_of - reading.figures["documents.nats"].value


def share_of_rest(study: Study, found: Figures) -> Estimate | None:
    """Gain, of what the window of equal bytes leaves to full attention; its error is the gain's."""
    rest = _equal_bytes(found) - study.base["full.nats"].value
    return found["equal_bytes.gain"].scaled(1 / rest) if rest > 0 else None


def of_what_is_left(study: Study) -> str:
    """How much of full attention's advantage the last tokens have already."""
    smallest, full = study.curve.points[0], study.base["full.nats"].value
    most = smallest.nats.value - full
    start = (
        f"Full attention ({study.context:,} tokens) is {_nats(most)} nats a token below the last "
        f"{smallest.name} tokens"
    )
    rest = {window: found for window in study.windows if (found := left(study, window)) is not None}
    if most <= 0 or not rest:
        return f"{start}."
    had = [f"{_share(1 - nats_of / most)} the last {window}" for window, nats_of in rest.items()]
    still = [f"{_nats(nats_of)} behind a window of {window}" for window, nats_of in rest.items()]
    return f"{start}. Of that, {listed(had)} have already; {listed(still)} is all there is to win."


def of_bytes(study: Study, reading: Reading) -> str | None:
    """What the memory's bytes buy as exact tokens, beside what the memory wins."""
    found, won = reading.figures, below(study, reading)
    assert reading.window is not None
    rest = left(study, reading.window)
    if won is None or rest is None or rest <= 0:
        return None
    memory = found["bytes.total"].value - found["bytes.exact"].value
    bought = rest + study.base["full.nats"].value - _equal_bytes(found)
    tokens = study.curve.tokens(memory)
    return (
        f"**{reading.label}** carries {show(round(memory))} bytes behind its window. As exact keys "
        f"and values they are {tokens:,.0f} tokens more, which win {_nats(bought)} of the "
        f"{_nats(rest)} nats left ({_share(bought / rest)}). The memory, training included, wins "
        f"{_nats(won)} ({_share(won / rest)})."
    )


def of_adaptation(study: Study, reading: Reading) -> str | None:
    """How much of what a version wins its control has learnt too."""
    worth, won = reading.figures.get("control.worth"), below(study, reading)
    if worth is None or won is None or won <= 0:
        return None
    mere = min(1.0, max(0.0, 1 - worth.value / won))
    return (
        f"Of the {_nats(won)} that {reading.label} is below its plain window, its control, "
        f"whose memory is another document's, has {_share(mere)} too: adaptation to the text. "
        f"The memory's worth is {nats(worth)}."
    )


def of_parts(study: Study, window: int) -> str | None:
    """What kept pairs alone and the matrix alone, trained alike, reach of what both together do."""
    by_gain = sorted(study.at(window), key=lambda r: r.figures["equal_bytes.gain"].value)
    both = {reading.kind: reading for reading in by_gain}.get(BOTH)  # the best one
    if both is None or (won := below(study, both)) is None or won <= 0:
        return None
    recipe = _recipe(study, both)
    by_kind = {
        r.kind: r for r in by_gain if r.kind in (KEPT, MATRIX) and _recipe(study, r) == recipe
    }
    if not (alone := [by_kind[kind] for kind in (KEPT, MATRIX) if kind in by_kind]):
        return None
    names = {KEPT: "the kept pairs alone", MATRIX: "the matrix alone"}
    parts = [
        f"{names[r.kind]} ({r.version}) {_nats(part)} ({_share(part / won)})"
        for r in alone
        if (part := below(study, r)) is not None
    ]
    each = [both, *alone]
    gains = [f"{r.version} {show_estimate(r.figures['equal_bytes.gain'])}" for r in each]
    worths = [
        f"{r.version} {show_estimate(worth)}"
        for r in each
        if (worth := r.figures.get("control.worth")) is not None
    ]
    return (
        f"At window {window}, {both.version} is {_nats(won)} below the plain window, "
        f"{listed(parts)}. Gain at equal bytes: {', '.join(gains)}"
        + (f"; worth: {', '.join(worths)}." if worths else ".")
    )


def of_longer_windows(study: Study) -> str | None:
    """What becomes of a version's worth when its window sees more by itself."""
    said = []
    for own in study.versions:
        others = [r for r in study.readings if r.version == own.version and not r.own]
        each = [r for r in (own, *others) if "control.worth" in r.figures]
        if len(each) > 1:
            steps = [
                f"{show_estimate(r.figures['control.worth'])} at {r.window} "
                f"(gain {show_estimate(r.figures['equal_bytes.gain'])})"
                for r in each
            ]
            said.append(f"{own.version} {', '.join(steps)}")
    return f"The same weights with other windows, worth: {'; '.join(said)}." if said else None


def of_the_aim(study: Study, window: int) -> str | None:
    """Which version comes nearest to the recovery that is aimed at, and by how much it fails."""
    able = [r for r in study.at(window) if "recovery.share" in r.figures]
    if window not in AIM or not able:
        return None
    reading = max(able, key=lambda r: r.figures["recovery.share"].value)
    share, aim = reading.figures["recovery.share"], AIM[window]
    short = 100 * (aim - share.value)
    so = "reached" if short <= 0 else f"missed by {show(Rounded(short, 1))} points"
    rest = share_of_rest(study, reading.figures)
    strict = "" if rest is None else f", by gain {show_estimate(rest.scaled(100))} %"
    return (
        f"Aimed at, with a window of {window}: {_share(aim)} recovery. Best is {reading.version}: "
        f"by worth {show_estimate(share.scaled(100))} %{strict}. By worth the aim is {so}."
    )


def of_far_keys(study: Study) -> str | None:
    """Which version finds most keys that lie many windows back, where all asked for do."""
    asked, segment = study.params["evaluate"]["passkey"], study.params["data"]["segment_length"]
    nearest = min(asked["lengths"]) * segment * (1 - max(asked["depths"])) - segment / 2
    able = [
        reading
        for reading in study.versions
        if reading.window is not None
        and "passkey.exact" in reading.figures
        and nearest >= FAR * reading.window
    ]
    if not able:
        return None
    best = max(able, key=lambda r: r.figures["passkey.exact"].value)
    found, off = (best.figures[f"passkey.exact{end}"].value for end in ("", "_off"))
    so = "reached" if found >= AIM_KEYS else f"missed by {100 * (AIM_KEYS - found):.0f} points"
    return (
        f"Aimed at: {_share(AIM_KEYS)} of pass keys {FAR} windows back. Best is {best.version}: "
        f"{_share(found)}, its window alone {_share(off)}. The aim is {so}."
    )


def _recipe(study: Study, reading: Reading) -> dict[str, Any]:
    """How an adapter is trained."""
    settings = study.params["adapters"][reading.version]
    return {key: x for key, x in settings.items() if key not in Adapter.own}


def _equal_bytes(found: Figures) -> float:
    """Nats of the base's window of a version's bytes."""
    return found["documents.nats"].value + found["equal_bytes.gain"].value


def _has_off(reading: Reading) -> bool:
    return "memory_off.nats" in reading.figures


def _nats(value: float) -> str:
    return show(Rounded(value, 4))


def _share(value: float) -> str:
    return f"{show(Rounded(100 * value, 0))} %"
