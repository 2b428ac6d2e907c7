"""Adapters of peft on a model: the modules that a pass runs, and whether the base has any.

peft wraps a module of `modules_to_save` and holds a copy of it for every adapter; a pass runs the
active adapter's. peft itself is not imported.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infini.errors import InputError


def active_module(module: nn.Module) -> nn.Module:
    """Return the copy of a module wrapped by peft that a pass runs; another module itself."""
    original = module._modules.get("original_module")
    copies = module._modules.get("modules_to_save")
    if original is None or not isinstance(copies, nn.ModuleDict):
        return module
    names: list[str] = module.active_adapters  # type: ignore[assignment]
    if module.disable_adapters or not names or any(name not in copies for name in names):
        return original
    return copies[names[0]]


def active_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its submodules, of those wrapped by peft the active copy alone."""
    module = active_module(module)
    yield module
    for child in module.children():
        yield from active_modules(child)


def adapter_layers(model: object) -> list[Any]:
    """Return the layers of peft in a model, such as LoRA's, that are not merged."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None or not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer)]


def _wrappers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the modules that peft has put around others: name, module, the other's name in it."""
    layers = set(map(id, adapter_layers(model)))
    for name, module in model.named_modules() if layers else ():
        if "original_module" in module._modules:
            yield name, module, "original_module"
        elif id(module) in layers:
            yield name, module, "base_layer"


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield all parameters that peft has added to a model."""
    for _, module, inner in _wrappers(model):
        own = set(map(id, getattr(module, inner).parameters()))
        yield from (parameter for parameter in module.parameters() if id(parameter) not in own)


def without_adapters(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state_dict as it was before peft wrapped modules of it."""
    inner = {f"{name}.": f"{inner}." for name, _, inner in _wrappers(model)}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in inner if name.startswith(prefix)), "")
        rest = name.removeprefix(prefix)
        if not prefix:
            own[name] = tensor
        elif rest.startswith(inner[prefix]):
            own[prefix + rest.removeprefix(inner[prefix])] = tensor
    return own


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what the active adapters add to a base, by name; adapters have no names.

    These are layers such as LoRA's, and copies of the base's modules (`modules_to_save`).
    """
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(adapter_layers(model)):
        active = () if layer.disable_adapters else layer.active_adapters
        for number, adapter in enumerate(active):
            scaling = getattr(layer, "scaling", {}).get(adapter, 1.0)
            tensors[f"{index}.{number}.scaling"] = torch.tensor(float(scaling))
            for part in layer.adapter_layer_names:
                found = getattr(layer, part, {})
                if isinstance(found, nn.ParameterDict) and adapter in found:
                    tensors[f"{index}.{number}.{part}"] = found[adapter]
                elif isinstance(found, nn.ModuleDict) and adapter in found:
                    for name, tensor in found[adapter].named_parameters():
                        tensors[f"{index}.{number}.{part}.{name}"] = tensor
    for path, module, inner in _wrappers(model):
        if inner == "base_layer" or path.rpartition(".")[2].startswith("infini_"):
            continue  # above, and the memory's own
        if (used := active_module(module)) not in (module, module.original_module):
            tensors |= {f"{path}.{name}": tensor for name, tensor in used.named_parameters()}
    return tensors


def check_no_adapters(model: object, mend: str) -> None:
    """Raise InputError for a model of peft, or with layers of peft; the message ends on `mend`."""
    peft = sys.modules.get("peft")
    if (peft is not None and isinstance(model, peft.PeftModel)) or adapter_layers(model):
        raise InputError(f"{type(model).__name__}: the model has adapters of peft: {mend}")
