"""The log's conclusions are set beside whatever a study has measured of them."""

from infini.report import conclusions
from report.toy_results import BASE, FALLS, RIGHT, version
from report.toy_studies import study

ORIGINAL = {"ppl_original": 40.0}


def replaced(ppl: float) -> dict:
    metrics = version(ppl, 44.0, -0.13)
    metrics["distill"] |= ORIGINAL
    metrics["memory"] |= {"swapped_gain": 0.001, "swapped_gain_se": 0.01}
    metrics["finetune"] = {"ppl_before": 90.0, "double_shift_before": 8000.0}
    metrics["double_shift"] = {"ppl": 7000.0}
    return metrics


def lossless() -> dict:
    distill = {"ppl_original": 40.0, "ppl_distilled": 40.0, "ppl_gap": 0.0}
    return version(38.0, 40.0, -0.05) | {"distill": distill, "short": {"ppl": 39.0, "nats": 3.66}}


BEGUN = BASE | {"short": {"ppl": 40.0, "nats": 3.69}}
FOUND = study(
    {
        "base": BEGUN,
        "v1": replaced(44.0),
        "v2": replaced(38.0),
        "v4": lossless(),
        "v3": version(39.0, 40.0, 0.05, 0.005),
    }
)


def test_every_conclusion_is_beside_what_was_measured() -> None:
    beside = conclusions.beside_the_log([FOUND]).values()
    assert all(said[0].startswith("toy: ") for said in beside)
    gap, before, after, memory, dead_end, hope = (said[0][5:] for said in beside)
    assert gap == (
        "v1: 40.00 → 54.00 (+20.00); v2: 40.00 → 48.00 (+10.00); v4: 40.00 → 40.00 (0.00)."
    )
    assert before.startswith("The untouched base, 40.0000 on the next token, scores 12,000 by")
    assert after == (
        "v1: on the next token 90.00 → 44.00, by the log's loop 8,000.00 → 7,000.00; "
        "v2: on the next token 90.00 → 38.00, by the log's loop 8,000.00 → 7,000.00."
    )
    assert memory.startswith(
        "v1: 0.001 ± 0.010 nats a token (noise) below another document's memory: any memory does "
        "as well; v2: "
    )
    assert dead_end == (
        "v4: 0.00 lost before training, short texts −2.5 % in perplexity after it, gain at equal "
        "bytes −0.050 ± 0.010 nats a token, it has no control: it does not pay."
    )
    assert hope == (
        "v3: gain at equal bytes 0.050 ± 0.010 nats a token, worth over its control "
        "0.0050 ± 0.0010 nats a token: it pays."
    )


def test_a_study_without_the_versions_has_nothing_to_say() -> None:
    gap, before, *others = conclusions.beside_the_log([study({}, name="bare")]).values()
    assert [gap, *others] == [[]] * 5
    assert before[0].startswith("bare: The untouched base")
    silent = {name: tree for name, tree in BASE.items() if name != "double_shift"}
    assert not any(conclusions.beside_the_log([study({"base": silent})]).values())


def test_the_audit_tells_where_it_was_run() -> None:
    audits = {"twice": FALLS, "right": RIGHT}
    said = conclusions.of_the_fall_after(study({"v2": replaced(38.0)}, audits=audits))
    assert said is not None
    assert said.startswith("Trained with labels shifted twice as well, v2 goes from 12,000 to 600")
    assert said.endswith("nothing of its memory. v2: on the next token 90.00 → 38.00, by the "
                         "log's loop 8,000.00 → 7,000.00.")  # fmt: skip
    alone = conclusions.of_the_fall_after(study({"v2": replaced(38.0)}, audits={"twice": FALLS}))
    assert alone is not None
    assert alone.startswith("v2: on the next token")


def test_a_memory_of_its_document_is_told() -> None:
    tree = replaced(38.0)
    tree["memory"] |= {"swapped_gain": 0.1}
    said = conclusions.of_the_memory(study({"v1": tree}))
    assert said is not None
    assert said.endswith("memory: its memory holds something of its document.")
    older = replaced(38.0)
    del older["memory"]["swapped_gain"], older["finetune"], older["distill"]
    found = study({"v1": older})
    assert conclusions.of_the_memory(found) is None
    assert conclusions.of_the_fall_after(found) is None
    assert conclusions.of_distillation(found) is None
