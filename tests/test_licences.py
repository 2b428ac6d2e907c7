"""Every package that is installed says under which licence; none asks that ours be another."""

from licences import CONSTRAINTS, licences

# Tools of DVC's, imported by no code of ours; pygit2's has an exception for whoever links it.
COPYLEFT = {"grandalf", "pygit2"}


def test_every_licence_is_known_and_none_is_ours_to_follow() -> None:
    found = licences()
    assert len(found) > 100
    assert not [package for package, licence in found.items() if not licence]
    strict = {
        package
        for package, licence in found.items()
        if "GPL" in licence and "LGPL" not in licence and " OR " not in licence
    }
    assert strict <= COPYLEFT


def test_the_list_is_up_to_date() -> None:
    listed = (CONSTRAINTS.parent / "docs/licences.md").read_text()
    assert not [package for package in licences() if f"| {package} |" not in listed]
