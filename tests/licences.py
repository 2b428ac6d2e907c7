"""`make licences`: every installed package that constraints.txt pins, with its licence."""

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
    """Return a package's licence by its metadata, newest field first; empty without one."""
    fields = metadata(package)
    classifiers = fields.get_all("Classifier") or []
    named = [text.split(" :: ")[-1] for text in classifiers if text.startswith("License ::")]
    stated = [name for name in named if name != "OSI Approved"]
    return fields.get("License-Expression") or ", ".join(stated) or fields.get("License", "")[:60]


def licences() -> dict[str, str]:
    """Return the licences of all installed packages, by package."""
    found = {}
    for package in (line.split("==")[0] for line in CONSTRAINTS.read_text().split()):
        try:
            found[package] = licence(package)
        except PackageNotFoundError:  # of another platform
            continue
    return found


if __name__ == "__main__":
    print(HEAD)
    for name, text in licences().items():
        print(f"| {name} | {text} |")
