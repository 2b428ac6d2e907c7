"""Code in README.md and docs/ runs as written, the quickstart prints what its page shows."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import ROOT

from examples.render import EXAMPLE, PAGE, render
from infini.choices import Policy

COMMAND_LINE = ROOT / "docs/command_line.md"
NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the base and the examples of a clone; policies are forgotten."""
    from infini.memory.eviction import policy

    for name in ("data", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "_FACTORIES", dict(policy._FACTORIES))
    return tmp_path


def run_python(file: str) -> dict[str, Any]:
    """Run the Python blocks of a document in order and return their variables."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / file).read_text(), re.S | re.M)
    assert blocks
    for block in blocks:
        exec(block, names)
    return names


def test_readme_code_runs(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python("README.md")
    assert "The army of the United States" in capsys.readouterr().out
    assert f"{names['text'].input_ids.shape[1]:,} tokens" in (ROOT / "README.md").read_text()
    assert names["model"].infini_config["retained"] == 32
    assert (clone / "my-model/infini.safetensors").is_file()


def test_command_line_shows_what_evaluate_prints(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import infini
    from infini.cli.main import main
    from infini.model.base import load_base

    options = {"window": 64, "sinks": 4, "retained": 32, "update": "gated_delta"}
    written = ", ".join(f"{name}={value!r}" for name, value in options.items())
    assert f'"window", {written})'.replace("'", '"') in (ROOT / "README.md").read_text()
    infini.retrofit(load_base("data/base"), "window", **options).save_pretrained("my-model")
    main(["evaluate", "my-model", "--file", "examples/message.txt"])
    shown = re.search(r"^```text\n(1 text,.*?)^```$", COMMAND_LINE.read_text(), re.S | re.M)
    assert shown
    printed, expected = capsys.readouterr().out, shown[1]
    assert NUMBER.sub("0", printed) == NUMBER.sub("0", expected)
    for number, value in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        number, value = (float(x.replace(",", "")) for x in (number, value))
        assert number == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_policies_page_lists_all_that_come_with_infini() -> None:
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs/policies.md").read_text(), re.M)
    assert sorted(set(rows) & set(get_args(Policy))) == sorted(get_args(Policy))


def test_policies_code_runs(clone: Path) -> None:
    names = run_python("docs/policies.md")
    assert names["model"].infini_config["policy"] == "HeavyHitters"
    registered = names["infini"].memory.eviction.policy_by_name("smallest_key_norm")
    assert isinstance(registered, names["SmallestKeyNorm"])


def test_quickstart_page_is_what_the_example_prints(clone: Path) -> None:
    page, expected = render(EXAMPLE), PAGE.read_text(encoding="utf-8")
    assert NUMBER.sub("0", page) == NUMBER.sub("0", expected)
    for number, written in zip(NUMBER.findall(page), NUMBER.findall(expected), strict=True):
        value = pytest.approx(float(written.replace(",", "")), rel=1e-3)
        assert float(number.replace(",", "")) == value
