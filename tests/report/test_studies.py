"""Studies are read of what Git has, and their versions known by what they are made of."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from infini.errors import InputError
from infini.evaluation.estimates import Estimate
from infini.report import studies
from infini.report.studies import kind_of, read_studies
from report.toy_results import BASE, version
from report.toy_studies import AUDIT, PARAMS, read_with, write_study


def test_the_default_run_is_the_first_and_what_was_not_run_is_left_out(tmp_path: Path) -> None:
    write_study(tmp_path, {"base": BASE, "v1": version(44.0, 44.0, -0.13)})
    write_study(tmp_path / "studies/small", {"base": BASE})
    write_study(tmp_path / "studies/large", {})
    first, second = read_studies(tmp_path)
    assert [first.name, second.name] == ["toy/base", "small"]
    assert first.about == "toy/base"
    assert [reading.label for reading in first.readings] == ["v1"]  # of v3, v5 … there is none
    assert first.base["full.ppl"] == Estimate(36.0)
    assert first.context == 1024
    assert second.readings == []
    assert read_studies(tmp_path / "nowhere") == []


def test_a_base_that_a_stage_writes_is_called_as_that_stage_says(tmp_path: Path) -> None:
    params = PARAMS | {"base": {"model": "data/base"}}
    stages = {"stages": {"make": {"desc": "A small base", "cmd": "true"}}}
    for folder in (tmp_path, tmp_path / "studies/small"):
        write_study(folder, {"base": BASE}, params)
        (folder / "base").mkdir()
        (folder / "base/dvc.yaml").write_text(yaml.safe_dump(stages))
    found = read_studies(tmp_path)
    assert [study.name for study in found] == ["embedded", "small"]
    assert [study.about for study in found] == ["A small base"] * 2


def test_a_version_is_read_with_every_window(tmp_path: Path) -> None:
    spread = {"spread": {"at": {"w256": {"control": {"worth": 0.25}}}}}
    write_study(tmp_path, {"base": BASE, "v5": read_with(256, 0.07, 0.5) | spread})
    (study,) = read_studies(tmp_path)
    own, other = study.readings
    assert (own.label, own.own, own.window) == ("v5 at window 64", True, 64)
    assert (other.label, other.own, other.window) == ("v5 at window 256", False, 256)
    assert other.figures["equal_bytes.gain"] == Estimate(0.07, 0.01, difference=True)
    assert other.figures["control.worth"] == Estimate(
        0.5, math.hypot(0.25, 0.001), difference=True
    )  # over seeds and texts
    assert study.windows == [64, 256]
    assert study.at(256) == [other]
    assert study.versions == [own]
    assert own.seeds == 4  # seed, one further for all, two of its own


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"layer": {"layers": [0]}}, studies.REPLACED),
        ({"layer": {"layers": [0], "init": "teacher"}}, studies.LOSSLESS),
        ({"method": "parallel", "layer": {}}, studies.PARALLEL),
        ({"method": "window", "layer": {}}, studies.MATRIX),
        ({"method": "window", "layer": {"update": "delta", "kept": 0}}, studies.MATRIX),
        ({"method": "window", "layer": {"update": "delta", "kept": 8}}, studies.BOTH),
        ({"method": "window", "layer": {"update": "none", "kept": 8}}, studies.KEPT),
        ({"method": "window", "layer": {"update": "none"}}, studies.PLAIN),
    ],
)
def test_what_a_version_is_made_of(block: dict[str, Any], kind: str) -> None:
    assert kind_of(block) == kind


def test_audits_of_another_base_are_left_out(tmp_path: Path) -> None:
    def lock(stage: str, md5: str) -> str:
        deps = [{"path": "data/inputs/base.json", "md5": md5}, {"path": "other", "md5": "x"}]
        return yaml.safe_dump({"stages": {stage: {"deps": deps}}})

    write_study(tmp_path, {"base": BASE})
    (tmp_path / "reports/audits").mkdir()
    assert read_studies(tmp_path)[0].audits == {}
    (tmp_path / "reports/audits/twice.json").write_text(json.dumps({"after": {"ppl": 2.0}}))
    assert read_studies(tmp_path)[0].audits == {"twice": {"after.ppl": Estimate(2.0)}}
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits/dvc.lock").write_text(lock("audit@twice", "aa"))
    for md5, there in (("aa", ["twice"]), ("bb", [])):
        (tmp_path / "dvc.lock").write_text(lock("prepare_data", md5))
        (study,) = read_studies(tmp_path)
        assert list(study.audits) == there
    assert study.asked["twice"].question == AUDIT["question"]


def test_metrics_of_an_older_kind_are_named(tmp_path: Path) -> None:
    write_study(tmp_path, {"base": BASE, "v1": {"documents": {"ppl": 3.0}}})
    with pytest.raises(InputError, match=r"v1.json: no equal_bytes, bytes, pays in it"):
        read_studies(tmp_path)
