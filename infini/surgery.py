"""Put the memory into a pretrained model, take it out again, save and load it.

`parallel` keeps a layer and adds to it: layer(x) + α · attention(norm(x)), the base at α = 0.
`replace` puts a freshly initialised copy of the layer in its place, its attention ours.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.attention import InfiniAttention
from infini.base import attention_name, decoder_layers, load_model, weights_fingerprint
from infini.errors import InputError
from infini.params import Base, Method, Placement
from infini.segments import MemoryModule

CONFIG, TENSORS = "infini_config.json", "infini.safetensors"


class ReplacedAttention(MemoryModule):
    """Stands where a layer's attention stood; takes and ignores what Hugging Face passes."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.attend(hidden_states), None


class InfiniLayer(nn.Module):
    """Stands where a layer stood: a fresh copy of it whose attention is ours."""

    original: nn.Module

    def __init__(self, original: nn.Module, attention: ReplacedAttention, std: float):
        super().__init__()
        # Kept out of the submodules: not trained, not saved, given back by remove().
        self.__dict__["original"] = original
        self.layer: nn.Module = copy.deepcopy(original)
        setattr(self.layer, attention_name(self.layer), attention)
        for module in self.layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(hidden_states, *args, **kwargs)


class InfiniAdapter(MemoryModule):
    """Stands where a layer stood: that layer, untouched, plus α times ours beside it."""

    original: nn.Module

    def __init__(
        self, original: nn.Module, attention: InfiniAttention, layer_index: int, alpha: float
    ):
        super().__init__(attention, layer_index)
        self.original = original
        self.norm = nn.LayerNorm(attention.q_proj.in_features)
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.original(hidden_states, *args, **kwargs)
        beside = self.alpha * self.attend(self.norm(hidden_states))
        return (out[0] + beside, *out[1:]) if isinstance(out, tuple) else out + beside


def retrofit(
    model: PreTrainedModel,
    method: Method,
    placement: Placement,
    segment_length: int,
    alpha: float = 0.0,
) -> PreTrainedModel:
    """Put the memory into `model`, in place; exactly our tensors are trainable afterwards.

    placement: which layers, and their attention. alpha: where α starts (`parallel` only).
    """
    slots = decoder_layers(model)
    config = model.config.get_text_config()
    if infini_slots(model):
        raise InputError("the model has a memory already: infini.remove(model) first")
    if missing := [index for index in placement.layers if not 0 <= index < len(slots)]:
        raise InputError(f"layers {missing} do not exist, the base has 0 to {len(slots) - 1}")
    model.infini_config = {
        "method": method,
        "segment_length": segment_length,
        "placement": placement.model_dump(),
        "base": {"model": config._name_or_path, "fingerprint": weights_fingerprint(model)},
    }
    model.requires_grad_(False)
    for index in placement.layers:
        attention = InfiniAttention(
            config.hidden_size,
            config.num_attention_heads,
            segment_length,
            placement.update,
            placement.local,
            placement.position,
        )
        if method == "replace":
            inside = ReplacedAttention(attention, index)
            ours: nn.Module = InfiniLayer(slots[index], inside, config.initializer_range)
        else:
            ours = InfiniAdapter(slots[index], attention, index, alpha)
        slots[index] = ours.to(model.device).train(model.training)
    for tensor in our_tensors(model).values():
        tensor.requires_grad_(True)
    return model


def infini_slots(model: PreTrainedModel) -> dict[int, InfiniLayer | InfiniAdapter]:
    """The decoder layers that are ours, by index; empty for an untouched base."""
    layers = enumerate(decoder_layers(model))
    return {i: layer for i, layer in layers if isinstance(layer, InfiniLayer | InfiniAdapter)}


def our_tensors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Exactly the parameters that the retrofit added, as `layers.<index>.<name>`."""
    return {
        f"layers.{index}.{name}": parameter
        for index, slot in infini_slots(model).items()
        for name, parameter in slot.named_parameters()
        if not name.startswith("original.")
    }


def remove(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory out, in place: the untouched base again."""
    slots = decoder_layers(model)
    for index, slot in infini_slots(model).items():
        slots[index] = slot.original
    if hasattr(model, "infini_config"):
        del model.infini_config
    return model


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Write our tensors and the config that rebuilds them; the base is named, not copied."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.infini_config, indent=2) + "\n")
    save_file({k: t.detach().contiguous() for k, t in our_tensors(model).items()}, folder / TENSORS)


def load(folder: str | Path, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """The model that `save` wrote, in evaluation mode; the base is found by its recorded name."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG}: not a folder that infini saved")
    config = json.loads((folder / CONFIG).read_text())
    base = base or load_model(Base(model=config["base"]["model"]))
    if weights_fingerprint(base) != config["base"]["fingerprint"]:
        raise InputError(f"{folder}: made for another base than {base.config._name_or_path!r}")
    placement = Placement(**config["placement"])
    model = retrofit(base, config["method"], placement, config["segment_length"])
    ours, stored = our_tensors(model), load_file(folder / TENSORS)
    if ours.keys() != stored.keys():
        odd = sorted(ours.keys() ^ stored.keys())
        raise InputError(f"{folder / TENSORS}: missing or unexpected tensors: {', '.join(odd)}")
    for name, parameter in ours.items():
        if parameter.shape != stored[name].shape:
            raise InputError(
                f"{folder / TENSORS}: {name} has shape {tuple(stored[name].shape)}, "
                f"{tuple(parameter.shape)} is needed"
            )
        parameter.data.copy_(stored[name])
    return model.eval()
