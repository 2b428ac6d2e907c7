"""All studies side by side: what docs/findings.md shows, in which order."""

from collections.abc import Iterable

import pandas as pd

from infini.evaluation.estimates import Estimate
from infini.report import cards, conclusions, findings, limits
from infini.report.cells import LEGEND, Cell, Rounded
from infini.report.page import Card, Part, Report, Section, Table
from infini.report.results import Figures
from infini.report.studies import STUDIES, Reading, Study
from infini.report.tables import HEADLINE, frame, row_of

PAGE = "reports/findings.html"
TASKS = {"passkey": "pass keys", "recall": "codes"}


def build(studies: list[Study]) -> Report:
    """The whole report."""
    sections = [
        _how_to_read(),
        _bases(studies),
        _answers(studies),
        _limits(studies),
        _retrieval(studies),
        _the_log(studies),
        _again(studies),
    ]
    return Report(
        "Findings: does the memory pay?",
        [f"{study.name}: {answer(study)}" for study in studies] or ["No study was measured."],
        [Card(study.name, *_card(study)) for study in studies],
        [section for section in sections if section.parts],
        stage="compare_studies",
        page=PAGE,
    )


def answer(study: Study) -> str:
    """Which versions pay, by window, with the figures of the best; if none: the nearest."""
    said = []
    for window in (None, *study.windows):
        paying = {r.version: r.figures for r in study.at(window) if findings.pays(r.figures)}
        if paying:
            best = max(paying, key=lambda version: paying[version]["equal_bytes.gain"].value)
            name = f"best {best}, " if len(paying) > 1 else ""
            where = "by segments" if window is None else f"with a window of {window}"
            its = findings.gain_and_worth(paying[best])
            said.append(f"{where} {findings.listed(list(paying))} ({name}{its})")
    return f"**it pays**, {'; '.join(said)}." if said else findings.answer(_by_label(study))


def _by_label(study: Study) -> dict[str, Figures]:
    return {reading.label: reading.figures for reading in study.readings}


def _card(study: Study) -> tuple[str, str]:
    found = _by_label(study)
    paying = [label for label, its in found.items() if findings.pays(its)]
    if paying or not found:
        return f"Yes: {', '.join(paying)}" if paying else "–", study.about
    name = findings.nearest(found)
    return "No", f"nearest is {name}: to pay it lacks {cards.lacking(found[name])}"


def headline(studies: list[Study]) -> pd.DataFrame:
    """A row a version and window, after its base's full attention."""
    rows: dict[str, dict[str, Cell]] = {}
    for study in studies:
        full = {"nats a token": "full.nats", "bytes": "full.bytes"}
        rows[f"{study.name}: base, full attention"] = {"pays": "", **row_of(study.base, full)}
        rows |= {f"{study.name}: {r.label}": _row(study, r) for r in study.readings}
    return frame(rows)


def _row(study: Study, reading: Reading) -> dict[str, Cell]:
    shown = row_of(reading.figures, HEADLINE)
    rest = limits.share_of_rest(study, reading.figures)
    worth, pays = shown.pop("recovery, %"), shown.pop("pays")
    return {
        "pays": pays,
        **shown,
        "recovery by worth, %": worth,
        "by gain, %": rest.scaled(100) if rest is not None and rest.value > -1 else None,
        "seeds": reading.seeds,
        "made of": reading.kind,
    }


def retrieval(studies: list[Study]) -> pd.DataFrame:
    """A row a version; per cent retrieved of pass keys and of codes."""
    return frame(
        {
            f"{study.name}: {reading.version}": {
                f"{facts}{label}": _per_cent(found.get(f"{task}.{key}"))
                for task, facts in TASKS.items()
                for label, found, key in (
                    (", %", reading.figures, "exact"),
                    (": memory kept empty", reading.figures, "exact_off"),
                    (": base, full attention", study.base, "exact_full"),
                )
            }
            for study in studies
            for reading in study.versions
            if any(f"{task}.exact" in reading.figures for task in TASKS)
        }
    )


def _per_cent(share: Estimate | None) -> Cell:
    return None if share is None else Rounded(100 * share.value, 0)


def _how_to_read() -> Section:
    return Section("How to read this", [
        "Asked is whether a memory of constant size helps a pretrained language model to read long "
        "text. Whoever carries no memory can carry the last tokens exactly for the same bytes: the "
        "untouched base with such a window is the first opponent, and *gain at equal bytes* is "
        "what a version is below it, in nats a token. Whatever is trained on a text also learns "
        "its style: the second opponent is the version's control, of the same parameters and "
        "training, whose memory is always another document's, and *worth* is what the version is "
        "below it. A version pays where both are above two standard errors.",
        "Recovery, of what the window of equal bytes leaves to full attention: by worth, and "
        "stricter by gain, what of it is won for no more bytes (– where more than all of it is "
        "lost). A row *at window* of another size is the same weights, read with that window. All "
        f"of it is on held-out text. {LEGEND}",
    ])  # fmt: skip


def _bases(studies: list[Study]) -> Section:
    rows: dict[str, dict[str, Cell]] = {}
    for study in studies:
        p = study.params
        rows[study.name] = {
            "base": study.about,
            "text": p["data"]["corpus"],
            "test documents, at most": p["evaluate"]["documents"],
            "tokens each": p["data"]["document_length"],
            "full attention, tokens": study.context,
            "versions measured": len(study.versions),
        }
    reports = [
        f"{study.name}: [{file}](../{file})"
        for study in studies
        if (file := study.folder / "reports/compare.md").is_file()
    ]
    more: list[Part] = [f"Each study's own report: {', '.join(reports)}."] if reports else []
    return Section("The studies", [Table(frame(rows), "study", "Studies"), *more])


def _answers(studies: list[Study]) -> Section:
    return Section("Does the memory pay?", [
        Table(headline(studies), "version", "Does the memory pay? Nats a token, bytes carried"),
    ])  # fmt: skip


def _limits(studies: list[Study]) -> Section:
    parts: list[Part] = []
    for study in studies:
        parts += [f"**{study.name}**", limits.of_study(study)]
    return Section("What limits it", parts)


def _retrieval(studies: list[Study]) -> Section:
    if not len(found := retrieval(studies)):
        return Section("Retrieval", [])
    return Section("Retrieval", [
        "Facts hidden in test text and asked for at its end; retrieved is what greedy decoding "
        "gives exactly. With the memory kept empty a version by window is the base's plain window. "
        "Full attention: the untouched base, on the texts that it holds.",
        [f"{study.name}: {_asked(study)}" for study in studies],
        Table(found, "version", "Retrieved, per cent"),
    ])  # fmt: skip


def _asked(study: Study) -> str:
    segment, asked = study.params["data"]["segment_length"], study.params["evaluate"]
    passkey, recall = asked["passkey"], asked.get("recall")
    said = (
        f"pass keys in texts of {_numbers(n * segment for n in passkey['lengths'])} tokens, at "
        f"depths {_numbers(passkey['depths'])}"
    )
    if recall:
        said += (
            f"; {_numbers(recall['pairs'])} codes in texts of {recall['segments'] * segment:,}, "
            f"{recall['questions']} of them asked for"
        )
    return f"{said}."


def _the_log(studies: list[Study]) -> Section:
    parts: list[Part] = ["Each beside what was measured here."]
    for claim, measured in conclusions.beside_the_log(studies).items():
        parts += [f"**{claim}**", measured or ["No study has a version that tells."]]
    return Section("The research log's conclusions", parts)


def _again(studies: list[Study]) -> Section:
    names = [study.name for study in studies if study.folder.parent.name == STUDIES.name]
    return Section("How to reproduce it", [
        [
            "`make run`: the default run, on the embedded base.",
            *(f"`make study STUDY={name}`: {name}." for name in names),
            "`dvc repro -s studies/dvc.yaml`: this page once more, of what is there.",
        ],
    ])  # fmt: skip


def _numbers(values: Iterable[float]) -> str:
    return findings.listed([f"{value:,g}" for value in values])
