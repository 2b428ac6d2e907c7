"""Audits and costs are in Git: of another base, text or recipe they are not this run's."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infini.errors import InputError
from infini.report.on_demand import of_other_runs

PARAMS: dict[str, Any] = {
    "seed": 0, "base": {"model": "b"}, "data": {"segment_length": 8, "samples": 3},
    "evaluate": {"documents": 4, "double_shift": {"documents": 2}, "recall": None},
    "replacements": {"v1": {"lr": 1}, "v2": {"lr": 2}}, "adapters": {"v3": {"lr": 3}},
    "audits": {"twice": {"of": "v2"}, "carried": {"of": "v3"}}, "cost": {"lengths": [8]},
}  # fmt: skip
DEPS = {"data/inputs/base.json": "aa", "data/prepared/documents": "dd", "infini/model": "old"}


def stage(hashes: dict[str, str], **params: Any) -> dict[str, Any]:
    deps = [{"path": path, "md5": md5} for path, md5 in hashes.items()]
    return {"deps": deps, "params": {"params.yaml": params}}


def write(folder: Path, params: dict[str, Any], base: str = "aa", documents: str = "dd") -> None:
    whole = {k: PARAMS[k] for k in ("seed", "base", "evaluate", "replacements", "adapters")}
    audits = {
        f"audit@{name}": stage(DEPS, **whole, **{f"audits.{name}": PARAMS["audits"][name]})
        for name in PARAMS["audits"]
    }
    costs = stage(DEPS, **whole, cost=PARAMS["cost"], **{"data.segment_length": 8})
    (folder / "audits").mkdir(exist_ok=True)
    lock = {"stages": {**audits, "measure_cost": costs}}
    (folder / "audits/dvc.lock").write_text(yaml.safe_dump(lock))
    prepared = stage({"data/inputs/base.json": base, "infini/model": "new"})
    prepared["outs"] = [{"path": "data/prepared/documents", "md5": documents}]
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare_data": prepared}}))
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def changed(key: str, value: Any) -> dict[str, Any]:
    params = yaml.safe_load(yaml.safe_dump(PARAMS))
    *ways, last = key.split(".")
    place = params
    for way in ways:
        place = place[way]
    place[last] = value
    return params


ALL = {"audit@twice", "audit@carried", "measure_cost"}


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("seed", 0, set()),
        ("data.samples", 9, set()),
        ("evaluate.recall", {"pairs": [1]}, set()),  # no audit asks for it
        ("adapters.v4", {"lr": 4}, set()),  # a further version
        ("base.model", "c", ALL),
        ("data.segment_length", 16, {"measure_cost"}),
        ("evaluate.documents", 5, {"audit@twice", "audit@carried"}),
        ("replacements.v2.lr", 9, {"audit@twice", "measure_cost"}),
        ("audits.carried.of", "v9", {"audit@carried"}),
        ("cost.lengths", [16], {"measure_cost"}),
    ],
)
def test_what_decides_the_figures_is_compared(
    tmp_path: Path, key: str, value: object, others: set[str]
) -> None:
    write(tmp_path, changed(key, value))
    assert of_other_runs(tmp_path) == others


@pytest.mark.parametrize(("base", "documents"), [("zz", "dd"), ("aa", "zz")])
def test_so_are_base_and_text(tmp_path: Path, base: str, documents: str) -> None:
    write(tmp_path, PARAMS, base, documents)
    assert of_other_runs(tmp_path) == ALL


def test_without_locks_nothing_is_known(tmp_path: Path) -> None:
    assert of_other_runs(tmp_path) == set()
    write(tmp_path, PARAMS)
    (tmp_path / "dvc.lock").unlink()
    assert of_other_runs(tmp_path) == set()
    (tmp_path / "audits/dvc.lock").write_text("<<<<<<< ours")
    with pytest.raises(InputError, match="not a lock of DVC's"):
        of_other_runs(tmp_path)
