"""Python of docs/hugging_face.md runs as written."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from infini.model.modules import infini_parameters


@pytest.fixture
def run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files that the page's code reads."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippets(language: str) -> list[str]:
    text = (ROOT / "docs/hugging_face.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed")
def test_code_of_quantised_bases_runs(run_in: Path) -> None:
    names: dict[str, Any] = {}
    exec("import infini, torch\nfrom transformers import AutoModelForCausalLM", names)
    [snippet] = snippets("py")
    exec(snippet, names)
    assert names["model"].infini_config["base"]["quantization"] == "torchao"


def test_hugging_face_code_runs(run_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for snippet in snippets("python"):
        exec(snippet, names)
    assert "The state of the Union" in capsys.readouterr().out
    assert names["cache"].seen_tokens == names["tokens"].shape[1] - 1 > 3 * 20
    pinned = list(range(4, names["system"].shape[1]))  # behind the sinks
    assert pinned
    for state in names["output"].cache.states.values():
        assert (state.retained.positions[0, :, : len(pinned)] == torch.tensor(pinned)).all()
    table = names["table"]
    assert list(table.index) == ["model", "baseline", "full"]
    assert 1 <= table["state_bytes"]["baseline"] / table["state_bytes"]["model"] < 1.02
    assert table["nats"]["full"] < table["nats"]["model"] < 4
    once, twice = infini_parameters(names["best"]), infini_parameters(names["again"])
    assert all((once[name] == tensor).all() for name, tensor in twice.items())
    assert not all(
        (tensor == once[n]).all() for n, tensor in infini_parameters(names["base"]).items()
    )
