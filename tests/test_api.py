"""The public API: every name and every parameter is documented, and the site builds."""

import re
import shutil
import subprocess
from collections.abc import Iterator

import griffe
import pytest
from conftest import ROOT

import infini

# Where a user starts: their docstrings have an example.
EXAMPLES = (
    "retrofit",
    "evaluate",
    "load",
    "save_memory",
    "load_memory",
    "register_policy",
    "InfiniAttention",
    "memory.compressive_memory",
)


def public_objects() -> Iterator[tuple[str, griffe.Object | griffe.Alias]]:
    """Yield what `infini` and `infini.memory` export, and the public members of their classes."""
    package = griffe.load("infini", docstring_parser="google", resolve_aliases=True)
    for module in (infini, infini.memory):
        for name in module.__all__:
            path = f"{module.__name__}.{name}".removeprefix("infini.")
            thing = package[path]
            yield path, thing
            if thing.is_class:
                for member, inner in thing.members.items():
                    in_init = inner.is_attribute and "class-attribute" not in inner.labels
                    if not member.startswith("_") and (not in_init or "property" in inner.labels):
                        yield f"{path}.{member}", inner


PUBLIC = dict(public_objects())
FUNCTIONS = [name for name, thing in PUBLIC.items() if thing.is_function or thing.is_class]


def sections(thing: griffe.Object | griffe.Alias) -> dict[str, object]:
    """Return the sections of a docstring by kind."""
    parsed = thing.docstring.parsed if thing.docstring else []
    return {section.kind.value: section.value for section in parsed}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name: str) -> None:
    assert PUBLIC[name].has_docstring


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_documented(name: str) -> None:
    thing = PUBLIC[name]
    parameters = {p.name.lstrip("*") for p in thing.parameters} - {"self", "cls"}
    if thing.is_class and any(getattr(base, "name", base) == "NamedTuple" for base in thing.bases):
        return  # fields, which have docstrings of their own
    documented = {p.name.lstrip("*") for p in sections(thing).get("parameters", [])}
    if thing.is_class and "__init__" in thing.members:
        documented |= {p.name for p in sections(thing["__init__"]).get("parameters", [])}
    if len(parameters) == 1 and thing.parent.is_class:  # one line may do
        documented |= set(re.findall(r"\w+", thing.docstring.value))
    assert not parameters - documented


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_has_an_example(name: str) -> None:
    assert "examples" in sections(PUBLIC[name])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_site_builds_without_a_warning() -> None:
    command = ["make", "-o", "setup-test", "docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder in (".", "studies/smollm2", "studies/recipes"):
        report = (ROOT / "site" / folder / "reports/index.html").read_text()
        metrics = (ROOT / folder / "reports/metrics").glob("*.json")
        assert all(file.stem in report for file in metrics)
    page = (ROOT / "site/docs/reference.html").read_text()
    for name in infini.__all__:
        assert f'id="infini.{name}"' in page or name == "memory"
