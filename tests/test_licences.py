"""Licences of installed packages are known, listed, and do not oblige ours to change."""

from conftest import ROOT
from licences import licences

# Tools of DVC, imported by no code of ours; pygit2 has an exception for whoever links it.
COPYLEFT = {"grandalf", "pygit2"}


def test_licences_are_known_and_not_copyleft() -> None:
    found = licences()
    assert len(found) > 100
    assert not [package for package, licence in found.items() if not licence]
    strict = {
        package
        for package, licence in found.items()
        if "GPL" in licence and "LGPL" not in licence and " OR " not in licence
    }
    assert strict <= COPYLEFT


def test_licences_page_lists_every_package() -> None:
    listed = (ROOT / "docs/licences.md").read_text()
    assert not [package for package in licences() if f"| {package} |" not in listed]
