"""The options of `retrofit`, one dataclass a method."""

import json
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import infini
from architectures import text, tiny
from infini.errors import InputError
from infini.memory.eviction import HeldPairs, RetentionPolicy, register_policy
from infini.model.retrofit_config import RetrofitConfig
from infini.model.segmented.config import ParallelConfig, ReplaceConfig
from infini.model.window.config import WindowConfig

# Every field with another value than its default
VALUES: dict[type[RetrofitConfig], dict[str, Any]] = {
    WindowConfig: {
        "layers": [0, 2], "window": 64, "sinks": 2, "update": "gated_delta", "retained": 32,
        "policy": "smallest_key",
    },
    ParallelConfig: {
        "layers": [1], "segment_length": 16, "update": "linear", "local": "linear",
        "position": "alibi", "segmented": False, "alpha": 0.5,
    },
    ReplaceConfig: {
        "layers": [1], "segment_length": 16, "update": "linear", "local": "linear",
        "position": "none", "segmented": False, "init": "random",
    },
}  # fmt: skip
CONFIGS = pytest.mark.parametrize("config_class", VALUES, ids=lambda cls: cls.__name__)
PARALLEL = "alpha, layers, local, position, segment_length, segmented, update"
REPLACE = "init, layers, local, position, segment_length, segmented, update"
WINDOW = "layers, policy, retained, sinks, update, window"


@CONFIGS
def test_config_json_round_trip(config_class: type[RetrofitConfig]) -> None:
    for options in ({}, VALUES[config_class]):
        config = config_class.from_dict(options)
        saved = json.loads(json.dumps(config.to_dict()))
        assert saved.pop("method") == config.method
        assert config_class.from_dict(saved) == config
    own = [field for field in fields(config_class) if not field.name.startswith("_")]
    assert {field.name for field in own} == VALUES[config_class].keys()
    assert all(VALUES[config_class][field.name] != field.default for field in own)


@CONFIGS
def test_config_rejects_unknown_keys(config_class: type[RetrofitConfig]) -> None:
    with pytest.raises(InputError, match=r"^layer is not an option of .*, did you mean layers"):
        config_class.from_dict({"layer": [0]})


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (rf"alhpa is .* method='parallel', did you mean alpha\? \(options: {PARALLEL}\)",
         {"alhpa": 1.0}),
        (rf"updat is .* method='replace', did you mean update\? \(options: {REPLACE}\)",
         {"method": "replace", "updat": "delta"}),
        (rf"depth is not an option of method='window' \(options: {WINDOW}\)",
         {"method": "window", "depth": 2}),
        ("alpha is not an option of method='replace'", {"method": "replace", "alpha": 0.5}),
        ("init is not an option of method='parallel'", {"init": "random"}),
        ("retained is not an option of method='parallel', but of method='window' \\(options",
         {"retained": 4}),
        ("alpha is not an option of method='window'", {"method": "window", "alpha": 0.5}),
        ("segment_length is not an option of method='window'",
         {"method": "window", "segment_length": 8}),
        (r"retained must be 0 with layers=\[\], got 4",
         {"method": "window", "layers": [], "retained": 4}),
        ("policy must be one of .*'decayed_attention'.*, got 'newest'",
         {"method": "window", "policy": "newest"}),
        ("policy must be a registered name or a RetentionPolicy object, got 3",
         {"method": "window", "policy": 3}),
    ],
)  # fmt: skip
def test_retrofit_rejects_unknown_options(message: str, options: dict[str, Any]) -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match=f"^{message}"):
        infini.retrofit(model, **options)
    assert not hasattr(model, "infini_config")


class SmallestKey(RetentionPolicy):
    """Retains the keys of the smallest norm."""

    def __init__(self, power: float = 1.0):
        self.power = power

    def score(self, pairs: HeldPairs) -> Tensor:
        return -(pairs.keys.norm(dim=-1) ** self.power)


@torch.no_grad()
def test_retention_policy_of_a_user_is_saved_once_registered(tmp_path: Any) -> None:
    options = {"window": 8, "sinks": 2, "retained": 4, "update": "none"}
    tokens = text(1, 120)
    default = infini.retrofit(tiny("llama"), "window", **options)(tokens).logits
    model = infini.retrofit(tiny("llama"), "window", policy=SmallestKey(), **options)
    expected = model(tokens).logits
    assert not torch.allclose(expected, default)
    with pytest.raises(InputError, match=r"register what returns it, infini\.register_policy\("):
        model.save_pretrained(tmp_path)
    register_policy("smallest_key_of_this_test", SmallestKey)
    model.save_pretrained(tmp_path)
    assert model.infini_config["policy"] == "smallest_key_of_this_test"
    assert torch.equal(infini.load(tmp_path, tiny("llama"))(tokens).logits, expected)
    infini.remove(model)
    infini.retrofit(model, "window", policy=SmallestKey(2.0), **options)
    with pytest.raises(InputError, match="policy SmallestKey: `load` could not make this object"):
        model.save_pretrained(tmp_path)
