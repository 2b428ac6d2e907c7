"""The headline: the answer first, then by version how it reads at equal bytes, and what it lacks.

Perplexities are compared as people say it: per cent, or how many times as high.
"""

import math

from infini.report.findings import nats, nearest, pays, share
from infini.report.page import Card
from infini.report.results import Figures

SAME_BYTES = "in perplexity, against the untouched base with a plain window of the same bytes"


MOST = 6  # versions with a card; the tables have them all


def of_all(figures: dict[str, Figures]) -> list[Card]:
    """The answer, versions that pay, the nearest others, the untouched base."""
    base, versions = figures["base"], {v: f for v, f in figures.items() if v != "base"}

    def rank(version: str) -> tuple[bool, float]:
        return pays(versions[version]), versions[version]["equal_bytes.gain"].value

    ordered = sorted(versions, key=rank, reverse=True)
    return [
        _answer(versions),
        *(_of_version(version, versions[version]) for version in ordered[:MOST]),
        Card(
            "Untouched base",
            f"{base['full.ppl'].value:.2f}",
            f"perplexity with full attention; {base['segmented.ppl'].value:.2f} in blind segments",
        ),
    ]


def _answer(versions: dict[str, Figures]) -> Card:
    question = "Does the memory pay?"
    if paying := [version for version, found in versions.items() if pays(found)]:
        note = "better than a plain window of the same bytes, and than the same version trained "
        note += "with another document's memory, each beyond two standard errors"
        return Card(question, f"Yes: {', '.join(paying)}", note)
    if not versions:
        return Card(question, "No", "there is no version")
    name = nearest(versions)
    return Card(question, "No", f"nearest is {name}: to pay it lacks {lacking(versions[name])}")


def _of_version(version: str, found: Figures) -> Card:
    if pays(found):
        verb = "pays"
        note = f"its memory is worth {nats(found['control.worth'])} over its control"
    else:
        verb, note = "does not pay", f"to pay it lacks {lacking(found)}"
    return Card(f"{version} {verb}", relative(found), f"{SAME_BYTES}; {note}{_retrieves(found)}")


def _retrieves(found: Figures) -> str:
    """What it is good for besides: whatever its memory alone finds."""
    exact, empty = (found.get(f"passkey.{name}") for name in ("exact", "exact_off"))
    if exact is None or empty is None or exact.value <= empty.value:
        return ""
    return f"; of pass keys it finds {share(exact)}, with its memory empty {share(empty)}"


def relative(found: Figures) -> str:
    """A version's perplexity by that of equal bytes: "0.53 % lower", "21.7 times as high"."""
    ratio = math.exp(-found["equal_bytes.gain"].value)
    if ratio >= 2:
        return f"{_leading(ratio)} times as high"
    change = f"{_leading(abs(100 * (ratio - 1)))} %"
    return f"{change} {'higher' if ratio > 1 else 'lower'}"


def _leading(value: float) -> str:
    """ "0.53", "4.0", "1,234": two digits or so."""
    if value < 1:
        return f"{value:#.2g}"
    return f"{value:,.{1 if value < 100 else 0}f}"


def lacking(found: Figures) -> str:
    """What a version that does not pay is short of."""
    gain, worth = found["equal_bytes.gain"], found.get("control.worth")
    lacks = []
    if gain.value <= 0:
        lacks.append(nats(gain._replace(value=-gain.value)))
    elif gain.is_noise:
        lacks.append("a gain beyond noise")
    if worth is None:
        lacks.append("a control to be held against")
    elif not worth.is_gain:
        lacks.append("a memory that is worth more than noise over its control")
    return " and ".join(lacks) or "the same with every seed"
