"""Identity of a base: a hash of all its weights, and of the config keys that affect logits.

The weights count as rounded to bfloat16: a base has one identity in float32, float64 and bfloat16,
on every device. Rounded to float16 they have another hash, as rounding twice is not rounding once;
so a memory that was saved with a base in float32 also recognises its base in float16.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel

from infini.model.peft_adapters import adapter_layers, adapter_parameters, without_adapters
from infini.model.segmented.layers import MemoryModule
from infini.model.tensor_files import tensors_state, values_hash
from infini.model.window.layer import SUBMODULE, WindowLayer

# Keys of infini_config.json's block `base`: the hash, and that of the weights in float16
FINGERPRINT, HALF_FINGERPRINT = "fingerprint", "fingerprint_float16"
RECORDED_KEYS = (
    "model",
    "revision",
    "dtype",
    "quantization",
    FINGERPRINT,
    HALF_FINGERPRINT,
    "config",
)
FINGERPRINT_DIGITS = 16  # hexadecimal

# Config keys that do not affect logits
SILENT_ENTRIES = PreTrainedConfig().to_dict().keys() - {"model_type"} | {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "init_std",
    "initializer_range",
    "pad_token_id",
    "quantization_config",
    "sep_token_id",
    "use_cache",
}


def base_fingerprint(model: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> str:
    """Return a hash that tells a base from all others, whatever type its weights are held in.

    Args:
        model: the base, or a retrofitted model, whose memory does not count.
        dtype: type to which the weights are rounded before.

    Returns:
        16 hexadecimal digits.
    """
    text = json.dumps(logits_config(model.config), sort_keys=True)
    return values_hash(base_tensors(model), text, dtype)[:FINGERPRINT_DIGITS]


def quantization_of(model: PreTrainedModel) -> str | None:
    """Return the method that quantised a model's weights, or else their class; None: none did."""
    config = getattr(model.config, "quantization_config", None)
    if config is not None:
        method = config["quant_method"] if isinstance(config, dict) else config.quant_method
        return str(getattr(method, "value", method))
    for tensor in base_tensors(model).values():
        if is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "full_tensor"):
            return type(tensor).__name__
    return None


def base_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the base's state_dict, of a model with or without a memory and adapters of peft."""
    slots = [f"{n}." for n, module in model.named_modules() if isinstance(module, MemoryModule)]
    tensors: dict[str, Tensor] = {}
    for name, tensor in without_adapters(model, model.state_dict()).items():
        slot = next((slot for slot in slots if name.startswith(slot)), "")
        own = name.removeprefix(slot)
        if slot and own.startswith("original."):
            tensors[slot + own.removeprefix("original.")] = tensor
        elif not slot and f".{SUBMODULE}." not in name:
            tensors[name] = tensor
    return tensors


def logits_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the entries of a model's config that affect its logits and differ from the default."""
    own = config.get_text_config()
    try:
        default = type(own)().to_dict()
    except Exception:  # of many kinds, where a class has no defaults
        default = {}
    moving = {
        name: value
        for name, value in own.to_dict().items()
        if name not in SILENT_ENTRIES
        and not name.startswith("_")  # transformers' own notes, such as where a model was loaded
        and "drop" not in name  # dropout, in training alone
        and (name == "model_type" or name not in default or value != default[name])
    }
    entries: dict[str, Any] = json.loads(json.dumps(moving, sort_keys=True, default=str))
    return entries


def base_name(model: PreTrainedModel) -> str:
    """Return the folder or hub name from which a base was loaded; "" if from none."""
    name: str = model.config.get_text_config()._name_or_path or model.config._name_or_path
    return name


def base_revision(model: PreTrainedModel) -> str | None:
    """Return the commit on the hub from which a base was loaded, as far as it is known."""
    return getattr(model.config, "_commit_hash", None)


def describe_base(model: PreTrainedModel, folder: str | Path | None = None) -> dict[str, Any]:
    """Return what infini_config.json records of a base.

    Args:
        model: the base, or a retrofitted model.
        folder: where the base was saved; None: where it was loaded from.

    Returns:
        `model` and `revision`, by which `load` finds it, its type, quantisation, fingerprints and
        config.
    """
    return {
        "model": base_name(model) if folder is None else str(folder),
        "revision": base_revision(model) if folder is None else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": quantization_of(model),
        FINGERPRINT: base_fingerprint(model),
        HALF_FINGERPRINT: base_fingerprint(model, torch.float16),
        "config": logits_config(model.config),
    }


def is_same_base(recorded: Mapping[str, Any], model: PreTrainedModel) -> bool:
    """Return whether a model's base is the one of which `describe_base` returned `recorded`."""
    half = model.dtype == torch.float16
    key, dtype = (HALF_FINGERPRINT, torch.float16) if half else (FINGERPRINT, torch.bfloat16)
    return base_fingerprint(model, dtype) == recorded[key]


def base_difference(recorded: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """Compare a model's base with a recorded one.

    Args:
        recorded: what `describe_base` returned of a base.
        model: a base, or a retrofitted model.

    Returns:
        What differs, in words; None: it is the same base.
    """
    if adapter_layers(model):
        return "it has an adapter of peft, merge_and_unload() or unload() it"
    if is_same_base(recorded, model):
        return None
    half = model.dtype == torch.float16
    then, now = recorded["config"], logits_config(model.config)
    changed = [
        f"{name} is {_shown(now, name)}, not {_shown(then, name)}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        return f"its config differs ({'; '.join(changed[:3])})"
    methods = quantization_of(model), recorded["quantization"]
    if methods[0] != methods[1]:
        words = [f"quantised by {name}" if name else "unquantised" for name in methods]
        return f"its weights are {words[0]}, not {words[1]}"
    if half != (recorded["dtype"] == "float16"):
        return f"its weights differ, as {model.dtype} and not torch.{recorded['dtype']} at least"
    return "its weights differ"


def _shown(config: Mapping[str, Any], name: str) -> str:
    return str(config.get(name, "the default"))


class RetrofittedBase:
    """The base of a retrofitted model: tells whether it is still the recorded one.

    Addresses, versions and norms of the weights are compared for every new cache, which takes
    about as long as to read one token; the weights are hashed only where these differ. Sharded
    weights, which would have to be gathered, are not compared.

    Args:
        model: the model, whose `infini_config` records its base.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = ref(model)
        self.accept()

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied_base, (self._model(), vars(self) | {"_model": None})

    def accept(self) -> None:
        """Take the base as it is for the recorded one."""
        model = self._model()
        assert model is not None
        self._fingerprint: str = model.infini_config["base"][FINGERPRINT]
        self._has_changed, self._state = False, self._current_state(model)

    def is_known(self) -> bool:
        """Return whether the weights are as they were when they were last accepted."""
        model = self._model()
        if model is None:  # the decoder is used alone
            return True
        return not self._has_changed and self._state == self._current_state(model)

    def fingerprint(self) -> str | None:
        """Return the recorded fingerprint; None: the base has changed since."""
        model = self._model()
        if model is None:  # the decoder is used alone
            return None if self._has_changed else self._fingerprint
        state = self._current_state(model)
        is_trained = self._has_changed and model.training  # not hashed again at every step
        if state != self._state and not is_trained:
            self._state = state
            self._has_changed = not is_same_base(model.infini_config["base"], model)
        return None if self._has_changed else self._fingerprint

    def _current_state(self, model: PreTrainedModel) -> Any:
        if not self._fingerprint or any(hasattr(p, "full_tensor") for p in model.parameters()):
            return None  # of `sliding_window`, which saves nothing, or sharded
        added = {id(p) for p in adapter_parameters(model)}
        for module in model.modules():
            own = module.infini_layer if isinstance(module, MemoryModule) else module
            if isinstance(module, MemoryModule | WindowLayer):
                added |= {id(p) for p in own.parameters()}
        return sorted(tensors_state(p for p in model.parameters() if id(p) not in added))


def _copied_base(model: PreTrainedModel | None, attributes: dict[str, Any]) -> RetrofittedBase:
    """Return what copying or pickling a model makes of its `RetrofittedBase`."""
    base = object.__new__(RetrofittedBase)
    vars(base).update(attributes | {"_model": ref(model) if model is not None else lambda: None})
    return base
