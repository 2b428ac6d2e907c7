"""The public API: every name of it is documented, every parameter named, the pages built."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pdoc.doc import Module

import infini
from docs.api import write


def public(module: ModuleType) -> dict[str, Any]:
    """The names that a module promises, and what its own classes promise, by dotted name."""
    found: dict[str, Any] = {}
    for name in module.__all__:
        found[name] = thing = getattr(module, name)
        if inspect.isclass(thing):
            own = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
            found |= {f"{name}.{k}": v for k, v in own.items()}
    return found


PUBLIC = {**public(infini), **public(infini.memory)}
CALLABLE = {
    name: getattr(thing, "__func__", thing)  # of a class method
    for name, thing in PUBLIC.items()
    if inspect.isroutine(thing) or inspect.isclass(thing)
}


@pytest.mark.parametrize("name", CALLABLE)
def test_every_parameter_is_in_the_docstring(name: str) -> None:
    thing: Callable[..., Any] = CALLABLE[name]
    words = set(re.findall(r"\w+", inspect.getdoc(thing) or ""))
    assert words
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return  # a named tuple's are its fields, which have docstrings of their own
    assert not set(inspect.signature(thing).parameters) - {"self", "cls"} - words


def test_every_name_has_a_docstring_and_is_on_the_pages(tmp_path: Path) -> None:
    write(tmp_path)  # whatever pdoc warns of is an error
    for module, page in ((infini, "infini.html"), (infini.memory, "infini/memory.html")):
        text, members = (tmp_path / page).read_text(), Module(module).members
        for name in public(module):
            if name == "memory":  # a page of its own
                continue
            first, _, second = name.partition(".")
            doc = members[first].members[second] if second else members[first]
            assert doc.docstring, name
            assert not doc.docstring.startswith("Alias for field number"), name
            assert f'id="{name}"' in text
