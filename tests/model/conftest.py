"""Every architecture with a memory, in every way that it is put in."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

import infini
from architectures import CONFIGS, L, tiny
from infini.model.modules import infini_parameters

KINDS: dict[str, dict[str, Any]] = {
    "beside": {"method": "parallel", "layers": [0, 2], "alpha": 0.7},
    "taught": {"method": "replace", "layers": [0, 1], "init": "teacher"},
    "fresh": {"method": "replace", "layers": [0], "init": "random", "local": "linear"},
    "beside_full": {"method": "parallel", "layers": [1], "alpha": 0.7, "segmented": False},
    "taught_full": {"method": "replace", "layers": [0], "init": "teacher", "segmented": False},
}


@pytest.fixture
def segment_length() -> int:
    """Of `retrofitted` and `ours`; a file that needs another has its own."""
    return L


@pytest.fixture
def retrofitted(segment_length: int) -> Callable[[str, str], PreTrainedModel]:
    """An architecture's tiny model with a memory of one kind, so large that it matters."""

    def make(name: str, kind: str) -> PreTrainedModel:
        model = infini.retrofit(tiny(name), segment_length=segment_length, **KINDS[kind])
        for key, parameter in infini_parameters(model).items():
            if key.endswith("beta"):
                parameter.data.normal_()
            elif kind == "fresh" and parameter.ndim == 2:
                parameter.data.normal_(std=0.3)
        return model

    return make


@pytest.fixture(params=[(name, kind) for name in CONFIGS for kind in KINDS], ids="-".join)
def ours(
    request: pytest.FixtureRequest, retrofitted: Callable[[str, str], PreTrainedModel]
) -> PreTrainedModel:
    """Every architecture times every kind."""
    return retrofitted(*request.param)
