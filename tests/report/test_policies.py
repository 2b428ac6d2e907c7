"""Retention policies in the report: chosen on validation documents, judged on test documents."""

from pathlib import Path

import pandas as pd
import pytest

from infini.evaluation.estimates import Estimate
from infini.files import write_json
from infini.paths import POLICIES, Version
from infini.report.plots import policy_curves_plot, policy_gains_plot
from infini.report.policies import best_policy, gains_over_policy, read_policies
from infini.report.results import read_results
from infini.report.sections import build_report
from infini.report.tables import headline_table, policies_table
from report.toy_results import METRICS_BY_VERSION, SETUP, write_results

# Nats per token of two validation and two test documents of 100 and 300 tokens
NATS = {
    "window-64-64": ([4.0, 4.0], [3.0, 4.0]),
    "snapkv-64-16": ([3.5, 3.9], [3.1, 3.9]),
    "tova-64-16": ([3.9, 3.9], [2.0, 3.0]),
    "oracle-64-16": ([1.0, 1.0], [1.0, 1.0]),
    "tova-256-16": ([0.5, 0.5], [0.5, 0.5]),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path)
    POLICIES.mkdir(parents=True)
    for name, splits in NATS.items():
        rows = [
            {"split": split, "piece": i, "text": i, "tokens": 100 + 200 * i, "bytes": 1000,
             "retained": 7, "state_bytes": 270000 if "-256-" in name else 68000, "nats": nats}
            for split, documents in zip(("val", "test"), splits, strict=True)
            for i, nats in enumerate(documents)
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(POLICIES / f"{name}.csv", index=False)
    return tmp_path


def documents(*nats: float) -> pd.DataFrame:
    """Return curves with a version's nats by test document."""
    rows = [("nats_by_document", i, "documents", value, None) for i, value in enumerate(nats)]
    return pd.DataFrame(rows, columns=["curve", "x", "series", "value", "se"])


def test_best_policy_is_chosen_on_validation_documents_without_the_oracle(folder: Path) -> None:
    policies = read_policies()
    best = best_policy(policies, 64)
    assert best is not None
    assert best.name == "snapkv"
    assert tuple(best.nats("val")[:2]) == pytest.approx(((350 + 3 * 390) / 400, 0.15))
    assert best_policy(policies, 65) is None
    table = policies_table([policy for policy in policies if policy.window_size == 64])
    assert list(table.index) == ["oracle (looks ahead)", "tova", "**snapkv**", "window"]
    assert table["gain over the window"]["tova"].startswith("1")
    assert table["gain over the window"]["window"] == "–"


def test_policy_gains_plot_has_a_row_a_policy_and_version(folder: Path) -> None:
    curves = pd.read_csv(Version("v3").curves)
    pd.concat([curves, documents(3.0, 3.8)]).to_csv(Version("v3").curves, index=False)
    figure = policy_gains_plot(read_results(SETUP))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-2:] == ["tova", "oracle (looks ahead)"], "the best last, at the top"
    assert sorted(names) == ["oracle (looks ahead)", "snapkv", "tova", "v3 (trained)"]
    (points,) = axes.containers
    found = dict(points.lines[0].get_xydata()[:, ::-1].tolist())
    assert found[names.index("snapkv")] == pytest.approx((300 * 0.1 - 100 * 0.1) / 400)
    assert found[names.index("v3 (trained)")] == 0.05


def test_policy_gains_plot_leaves_out_sizes_of_few_policies(folder: Path) -> None:
    before = policy_gains_plot(read_results(SETUP)).axes[0].containers
    window = pd.read_csv(POLICIES / "window-64-64.csv")
    window.to_csv(POLICIES / "window-256-64.csv", index=False)
    assert len(policy_gains_plot(read_results(SETUP)).axes[0].containers) == len(before) + 1
    (POLICIES / "tova-256-16.csv").unlink()
    assert len(policy_gains_plot(read_results(SETUP)).axes[0].containers) == len(before)


def test_policy_curves_plot_has_a_line_a_policy_and_window(folder: Path) -> None:
    figure = policy_curves_plot(read_results(SETUP))
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["tova, window 16"] == [[68000, 2.75], [270000, 0.5]], "state bytes, nats on test"
    assert "snapkv, window 16" not in lines, "one size is no line"
    assert lines["oracle (looks ahead)"] == [[68000, 1.0]]
    assert lines["plain window"] == [[68000, 3.75]]
    version = METRICS_BY_VERSION["v3"]
    place = [version["state_bytes"]["total"], version["documents"]["nats"]]
    assert lines["v3 (trained)"] == [place]
    full = METRICS_BY_VERSION["base"]["full"]["nats"]
    assert [y for _, y in lines["full attention"]] == [full, full]
    assert not any(text.get_text().startswith("v3") for text in figure.axes[0].texts)
    far = version | {"documents": version["documents"] | {"nats": 3.8}}
    write_json(Version("v3").metrics, far)
    axes = policy_curves_plot(read_results(SETUP)).axes[0]
    assert "v3: 3.80" in {text.get_text() for text in axes.texts}, "above all lines"
    assert "v3 (trained)" not in {line.get_label() for line in axes.lines}
    write_json(Version("v3").metrics, version)
    section = build_report(read_results(SETUP), {}, {}).sections
    assert "policy_curves" in {getattr(part, "name", "") for s in section for part in s.parts}
    (POLICIES / "tova-256-16.csv").unlink()
    section = build_report(read_results(SETUP), {}, {}).sections
    assert "policy_curves" not in {getattr(part, "name", "") for s in section for part in s.parts}


def test_gain_over_policy_is_paired_by_document(folder: Path) -> None:
    policy = best_policy(read_policies(), 64)
    assert policy is not None
    [gain] = gains_over_policy(documents(3.0, 3.8), policy, "documents")
    assert gain == Estimate(pytest.approx(0.1), pytest.approx(0.0, abs=1e-9), difference=True)
    [gain] = gains_over_policy(documents(3.1, 3.8), policy, "documents")
    assert gain.value == pytest.approx(0.075)
    assert gains_over_policy(documents(3.1, 3.8), policy, "documents_at_window_9") == []


def test_version_beats_the_best_policy_only_with_every_seed(folder: Path) -> None:
    metrics = METRICS_BY_VERSION["v3"] | {"beats_both": 1, "seeds": 2}
    write_json(Version("v3").metrics, metrics)
    curves = pd.read_csv(Version("v3").curves)
    first = documents(3.0, 3.8).assign(series="documents seed 0")
    pd.concat([curves, first]).to_csv(Version("v3").curves, index=False)
    results = read_results(SETUP)
    assert results.figures["v3"]["baseline.gain"].value == pytest.approx(0.1)
    assert results.figures["v3"]["beats_both"].value == 0, "one of two seeds"
    [line] = [text for text, _ in build_report(results, {}, {}).verdicts if "v3" in text]
    assert line.startswith("**v3 is undecided**: 0.1")
    assert "; 1 of 2 seeds is compared with that policy." in line
    assert headline_table(results)["beats both"]["v3"] == "undecided"
    second = documents(2.9, 3.8).assign(series="documents seed 1")
    pd.concat([curves, first, second]).to_csv(Version("v3").curves, index=False)
    figures = read_results(SETUP).figures["v3"]
    gains = [0.1, (100 * 0.2 + 300 * 0.1) / 400]
    assert figures["baseline.gain"].value == pytest.approx(sum(gains) / 2)
    assert figures["baseline.gain"].error >= (gains[1] - gains[0]) / 2**0.5
    assert figures["baseline.gain"].difference, "~ where it is noise"
    assert figures["beats_both"].value == 1
    second = documents(3.1, 3.9).assign(series="documents seed 1")
    pd.concat([curves, first, second]).to_csv(Version("v3").curves, index=False)
    results = read_results(SETUP)
    assert results.figures["v3"]["beats_both"].value == 0, "the second seed does not"
    assert headline_table(results)["beats both"]["v3"] == "no"


def test_figures_replace_the_gain_over_the_window_by_that_over_the_best_policy(
    folder: Path,
) -> None:
    metrics = METRICS_BY_VERSION["v3"] | {"beats_both": 1}
    write_json(Version("v3").metrics, metrics)
    assert read_results(SETUP).figures["v3"]["baseline.gain"].value == 0.05
    curves = pd.read_csv(Version("v3").curves)
    pd.concat([curves, documents(3.0, 3.8)]).to_csv(Version("v3").curves, index=False)
    results = read_results(SETUP)
    figures = results.figures["v3"]
    assert figures["baseline.gain"].value == pytest.approx(0.1)
    assert figures["window.gain"].value == 0.05
    assert figures["beats_both"].value == 1
    assert headline_table(results).loc["v3", "baseline"] == "snapkv"
    [line] = [text for text, _ in build_report(results, {}, {}).verdicts if "v3" in text]
    assert line.startswith("**v3 beats both**: 0.10")
    assert "below the best policy (snapkv, window 16 + 7 pairs) of equal state bytes" in line
    pd.concat([curves, documents(3.1, 3.9)]).to_csv(Version("v3").curves, index=False)
    assert read_results(SETUP).figures["v3"]["beats_both"].value == 0
