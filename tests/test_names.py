"""Public names are unique in the package, and docstrings have a subject."""

from check_names import duplicate_names, unclear_docstrings


def test_no_public_name_is_defined_twice() -> None:
    assert duplicate_names() == {}


def test_every_docstring_has_a_subject() -> None:
    assert unclear_docstrings() == []
