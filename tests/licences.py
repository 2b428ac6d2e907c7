"""`make licences`: every package of constraints.txt that is installed, and its licence."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
HEAD = """# Licences

Licences of all packages that [constraints.txt](../constraints.txt) pins, from their own metadata;
`make licences` writes this file. The library alone needs torch, transformers, safetensors, Jinja2
and their dependencies; everything else belongs to the pipeline, the documentation and the tests.

| package | licence |
|:--|:--|"""


def licence(package: str) -> str:
    """By the package's metadata, its newest field first; empty where it says nothing."""
    known = metadata(package)
    classifiers = known.get_all("Classifier") or []
    named = [text.split(" :: ")[-1] for text in classifiers if text.startswith("License ::")]
    told = [name for name in named if name != "OSI Approved"]
    return known.get("License-Expression") or ", ".join(told) or (known.get("License") or "")[:60]


def licences() -> dict[str, str]:
    """By package, of those that are installed."""
    found = {}
    for package in (line.split("==")[0] for line in CONSTRAINTS.read_text().split()):
        try:
            found[package] = licence(package)
        except PackageNotFoundError:  # a study's own, or another platform's
            continue
    return found


if __name__ == "__main__":
    print(HEAD)
    for name, text in licences().items():
        print(f"| {name} | {text} |")
