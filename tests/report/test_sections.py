"""The whole report: what it shows, and that Git sees nothing of the run that made it."""

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from infini.evaluation.estimates import Estimate, estimates_of
from infini.report.page import Drawing, Report, Table, html, markdown
from infini.report.results import Results
from infini.report.sections import build
from report.toy_results import SETUP, passkey, results, version

ORIGIN = {"params.yaml": "0123456789ab", "prepared data": "ba9876543210"}
TIMES = {"v1-distill": {"seconds": 12.3, "startup": 4.5, "seconds_per_epoch": 0.91}}
DRAWN = [
    "bytes",
    "perplexity",
    "segments",
    "distance",
    "retrieval",
    "gates",
    "costs",
    "distill",
    "finetune",
]


def report(found: Results, commit: str = "abcdef", times: dict | None = TIMES) -> Report:
    return build(found, ORIGIN, {"commit": commit, "hardware": "a toaster"}, times or {})


def titles(made: Report) -> list[str]:
    return [section.title for section in made.sections]


def drawings(made: Report) -> list[str]:
    return [p.name for s in made.sections for p in s.parts if isinstance(p, Drawing)]


def test_sections_and_their_order() -> None:
    made = report(results())
    assert titles(made) == [
        "All versions",
        "The log's comparison",
        "What the research log measured",
        "Where in the document",
        "Retrieval",
        "Gates and α",
        "What a memory costs",
        "Training",
        "Settings",
        "Where this comes from",
        "This run",
    ]
    assert drawings(made) == DRAWN
    assert made.summary[0].startswith("**v1, v2 and v3 pay.** v1: gain at equal bytes 0.050")
    assert [(card.label, card.value) for card in made.cards] == [
        ("Does the memory pay?", "Yes: v1, v2, v3"),
        *[(f"{name} pays", "4.9 % lower") for name in ("v1", "v2", "v3")],
        ("Untouched base", "36.00"),
    ]
    text = markdown(made, "plots")
    captions = [p.caption for s in made.sections for p in s.parts if isinstance(p, Table)]
    assert "Replacements: v1 | v2" in captions
    assert "Of the short samples here 12.5 % is padding." in text
    assert "v2 goes from 12,000 to 600 by the log's loop" in text


def test_retrieval_has_what_was_asked_for() -> None:
    names, keys = ("base", *SETUP.versions), passkey(0.1).query("task == 'passkey'")
    earlier = keys.drop(columns=["distance", "pairs"])
    made, old = results(), results(passkey=dict.fromkeys(names, earlier))
    for figures in made.figures.values():
        figures["recall.exact"] = Estimate(0.5)
    captions = [
        [part.caption for part in report(found).sections[4].parts if isinstance(part, Table)]
        for found in (made, old)
    ]
    assert [caption.partition(",")[0] for caption in captions[0]] == [
        "Passkey",
        "Recall: codes of several words",
        "Passkeys retrieved",
        "Codes retrieved",
        "Codes retrieved",
    ]
    assert captions[1] == captions[0][:1]


def test_other_windows_have_a_table_where_there_are_any() -> None:
    caption, found = "The same weights at other windows", results()
    parts = report(found).sections[0].parts
    assert caption not in [part.caption for part in parts if isinstance(part, Table)]
    found.figures["v3"].update(estimates_of({"at": {"w256": version(38.0, 40.0, 0.05, 0.005)}}))
    parts = report(found).sections[0].parts
    assert caption in [part.caption for part in parts if isinstance(part, Table)]


def test_git_sees_the_same_bytes_whatever_the_run() -> None:
    first = report(results())
    other = report(results(), "fedcba", {**TIMES, "v2-distill": {"seconds": 99.9, "startup": 1.0}})
    text, page = markdown(first, "plots"), html(first)
    assert text == markdown(other, "plots")
    assert page != html(other)
    for hashed in ORIGIN.values():
        assert hashed in text
        assert hashed in page
    for of_the_run in ("abcdef", "a toaster", "12.3", "This run"):
        assert of_the_run not in text
        assert of_the_run in page


def test_a_fresh_clone_has_no_times() -> None:
    last = report(results(), times=None).sections[-1]
    assert [part.caption for part in last.parts if isinstance(part, Table)] == [
        "Code, software and hardware"
    ]


def test_without_replacements_the_logs_comparison_disappears() -> None:
    made = report(results(setup=replace(SETUP, replacements={}), audits={}))
    assert "The log's comparison" not in titles(made)
    assert drawings(made) == [name for name in DRAWN if name != "distill"]
    assert "v3" in markdown(made, "plots")


def test_without_versions_the_base_is_reported() -> None:
    made = report(results(setup=replace(SETUP, replacements={}, adapters={}), audits={}))
    assert made.summary[0] == "**No version pays**: there is none."
    assert {"The log's comparison", "Settings"} & set(titles(made)) == set()
    assert drawings(made) == [name for name in DRAWN if name not in ("distill", "finetune")]
    assert "40.00 in blind segments" in markdown(made, "plots")
    assert html(made)


def test_without_costs_there_is_no_section_of_them() -> None:
    assert "What a memory costs" not in titles(report(results(costs=pd.DataFrame())))


def test_without_audits_it_says_which_are_missing() -> None:
    text = markdown(report(results(audits={})), "plots")
    assert "No audit with labels shifted twice and its twin" in text
    assert "padding" not in text


@pytest.mark.parametrize("module", ["sections", "provenance", "revisions"])
def test_nobody_waits_for_torch(module: str) -> None:
    code = f"import sys, infini.report.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_of_another_base_is_said() -> None:
    report = build(results(foreign=["costs", "padding"]), {}, {}, {})
    (section,) = [s for s in report.sections if s.title == "What the research log measured"]
    assert "another base, text or recipe: costs, padding;" in section.parts[-1]


def test_names_and_texts_of_the_user_are_no_markup() -> None:
    """Names are checked where params.yaml is read; the page does not count on it."""
    evil = "<img src=//x onerror=y>![z](http://z/z.png)[j](javascript:k)"
    setup = replace(
        SETUP,
        base=SETUP.base.model_copy(update={"model": evil}),
        data=SETUP.data.model_copy(update={"corpus": evil}),
        replacements={f"v1{evil}": SETUP.replacements["v1"]},
        adapters={f"v3{evil}": SETUP.adapters["v3"]},
        audits={
            name: audit.model_copy(update={"question": evil})
            for name, audit in SETUP.audits.items()
        },
    )
    made = replace(report(results(setup=setup, foreign=[evil])), title=evil)
    page = html(made)
    assert page.count("&lt;img src") > 20
    assert "<img" not in page
    assert 'href="javascript' not in page
