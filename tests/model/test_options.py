"""Options that no method, or another one, has."""

from typing import Any

import pytest

import infini
from architectures import tiny
from infini.errors import InputError

PARALLEL = "alpha, local, position, segment_length, segmented, update"
REPLACE = "init, local, position, segment_length, segmented, update"
NONE: list[tuple[str, dict[str, Any]]] = [
    (
        rf"alhpa: no option of method='parallel', did you mean alpha\? \(they are {PARALLEL}\)",
        {"alhpa": 1.0},
    ),
    (
        rf"updat: no option of method='replace', did you mean update\? \(they are {REPLACE}\)",
        {"method": "replace", "updat": "delta"},
    ),
    (
        r"depth: no option of method='window' \(they are kept, sinks, update, window\)",
        {"method": "window", "depth": 2},
    ),
    ("alpha: not with method='replace'", {"method": "replace", "alpha": 0.5}),
    ("init: not with method='parallel'", {"init": "random"}),
    ("kept: not with method='parallel'", {"retained": 4}),
    ("alpha: not with method='window'", {"method": "window", "alpha": 0.5}),
    ("segment_length: not with method='window'", {"method": "window", "segment_length": 8}),
    (r"kept: .*layers=\[\] names none", {"method": "window", "layers": [], "retained": 4}),
]


@pytest.mark.parametrize(("message", "options"), NONE)
def test_options_that_would_do_nothing_are_refused(message: str, options: dict[str, Any]) -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match=f"^{message}"):
        infini.retrofit(model, **options)
    assert not hasattr(model, "infini_config")
