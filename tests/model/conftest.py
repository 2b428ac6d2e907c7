"""Fixtures: every architecture with every kind of segmented memory."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

import infini
from architectures import CONFIGS, L, tiny
from infini.model.modules import infini_parameters

KINDS: dict[str, dict[str, Any]] = {
    "parallel": {"method": "parallel", "layers": [0, 2], "alpha": 0.7},
    "replace_teacher": {"method": "replace", "layers": [0, 1], "init": "teacher"},
    "replace_random": {"method": "replace", "layers": [0], "init": "random", "local": "linear"},
    "parallel_full": {"method": "parallel", "layers": [1], "alpha": 0.7, "segmented": False},
    "replace_teacher_full": {
        "method": "replace",
        "layers": [0],
        "init": "teacher",
        "segmented": False,
    },
}


@pytest.fixture
def segment_length() -> int:
    """Segment length of `retrofitted` and `any_model`; a file may override it."""
    return L


@pytest.fixture
def retrofitted(segment_length: int) -> Callable[[str, str], PreTrainedModel]:
    """Return a function (architecture, kind) → tiny model whose memory changes the output."""

    def make(name: str, kind: str) -> PreTrainedModel:
        model = infini.retrofit(tiny(name), segment_length=segment_length, **KINDS[kind])
        for key, parameter in infini_parameters(model).items():
            if key.endswith("beta"):
                parameter.data.normal_()
            elif kind == "replace_random" and parameter.ndim == 2:
                parameter.data.normal_(std=0.3)
        return model

    return make


@pytest.fixture(params=[(name, kind) for name in CONFIGS for kind in KINDS], ids="-".join)
def any_model(
    request: pytest.FixtureRequest, retrofitted: Callable[[str, str], PreTrainedModel]
) -> PreTrainedModel:
    """Return the tiny model of every architecture with every kind of memory."""
    return retrofitted(*request.param)
