"""Put the memory into a pretrained model, take it out again, load it.

`parallel` keeps a layer and adds to it: layer(x) + α · attention(norm(x)), the base at
α = 0. `replace` puts a copy of the layer in its place, its attention ours: of the base's
own weights ("teacher", the base within a segment), or freshly initialised ("random").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from infini import storage
from infini.attention import InfiniAttention
from infini.base import decoder_layers, load_model, weights_fingerprint
from infini.errors import InputError
from infini.layers import InfiniAdapter, InfiniLayer, infini_slots, our_tensors
from infini.local import LocalKind, Position
from infini.model import InfiniDecoder, InfiniModel, put_in_front, take_out
from infini.params import Adapter, Base, Method, Placement
from infini.recall import Update
from infini.teacher import check_replaceable, rotary_of, teacher_attention

Init = Literal["teacher", "random"]


def retrofit(
    model: PreTrainedModel,
    method: Method = "parallel",
    layers: Sequence[int] = (0,),
    segment_length: int = 256,
    *,
    update: Update = "delta",
    local: LocalKind = "softmax",
    position: Position | None = None,
    alpha: float = 0.0,
    init: Init = "teacher",
    segmented: bool = True,
) -> PreTrainedModel:
    """Put the memory into `model`, in place; exactly our tensors are trainable afterwards.

    layers: decoder layers, from 0. alpha: where α starts (`parallel`). init: of a replaced layer.
    position: of the local attention; by default the base's own with init="teacher", else none.
    segmented: every layer sees one segment of `segment_length` tokens, the memory alone crosses
    them; False: the other layers keep their full attention. InputError for what cannot be.
    """
    for name, value, allowed in (
        ("method", method, Method),
        ("update", update, Update),
        ("local", local, LocalKind),
        ("position", position, Position | None),
        ("init", init, Init),
    ):
        known = [one for part in get_args(allowed) for one in get_args(part) or [part]]
        if value not in known and not (value is None and type(None) in known):
            names = ", ".join(repr(one) for one in known if isinstance(one, str))
            raise InputError(f"{name}: one of {names} is needed, got {value!r}")
    if infini_slots(model):
        raise InputError("the model has a memory already: infini.remove(model) first")
    slots, layers = decoder_layers(model), sorted(set(layers))
    if missing := [index for index in layers if not 0 <= index < len(slots)]:
        raise InputError(f"layers {missing} do not exist, the base has 0 to {len(slots) - 1}")
    if not layers:
        raise InputError("layers: at least one is needed")
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", segment_length)
    if not 1 <= segment_length <= longest:
        raise InputError(
            f"segment_length: 1 to {longest} (the base's context), got {segment_length}"
        )
    taught = method == "replace" and init == "teacher"
    if method == "replace":
        check_replaceable(model)
    rotary = rotary_of(model)
    own: Position = "none" if rotary is None else "rope"
    if taught and (local != "softmax" or position not in (None, own)):
        raise InputError(f'init="teacher" keeps the base\'s own: local="softmax", position="{own}"')
    if position == "rope" and rotary is None:
        raise InputError('position: the base has no rotary embedding, use "none" or "alibi"')

    def attention(layer: nn.Module) -> InfiniAttention:
        if taught:
            return teacher_attention(model, layer, segment_length, update)
        return InfiniAttention(
            config.hidden_size,
            config.num_attention_heads,
            segment_length,
            update,
            local,
            position or "none",
            head_dim=getattr(config, "head_dim", None),
            rotary=rotary,
        )

    model.infini_config = {
        "format": 1,
        "method": method,
        "layers": layers,
        "segment_length": segment_length,
        "update": update,
        "local": local,
        "position": position or (own if taught else "none"),
        "init": init if method == "replace" else None,
        "segmented": segmented,
        "base": {
            "model": config._name_or_path or model.config._name_or_path,
            "revision": getattr(model.config, "_commit_hash", None),
            "fingerprint": weights_fingerprint(model),
        },
    }
    model.trainable_before = [name for name, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    for index in layers:
        ours: InfiniLayer | InfiniAdapter
        if method == "replace":
            ours = InfiniLayer(slots[index], attention(slots[index]), index)
            if not taught:
                _initialise(ours, config.initializer_range)
        else:
            ours = InfiniAdapter(slots[index], attention(slots[index]), index, alpha)
        slots[index] = ours.to(model.device, model.dtype).train(model.training)
    for tensor in our_tensors(model).values():
        tensor.requires_grad_(True)
    put_in_front(model, InfiniModel)
    decoder = model.get_decoder()
    put_in_front(decoder, InfiniDecoder)
    decoder.infini = {k: v for k, v in model.infini_config.items() if k != "base"}
    return model


def replace_layer(
    model: PreTrainedModel, recipe: Placement, segment_length: int, seed: int
) -> PreTrainedModel:
    """A replacement as params.yaml describes it, its layer fresh; `seed` decides the weights."""
    torch.manual_seed(seed)
    return retrofit(
        model, "replace", segment_length=segment_length, init="random", **recipe.model_dump()
    )


def add_adapter(
    model: PreTrainedModel, recipe: Adapter, segment_length: int, seed: int
) -> PreTrainedModel:
    """An adapter as params.yaml describes it; `seed` decides the new weights."""
    torch.manual_seed(seed)
    return retrofit(
        model,
        "parallel",
        segment_length=segment_length,
        alpha=recipe.alpha,
        **recipe.layer.model_dump(),
    )


def _initialise(ours: InfiniLayer, std: float) -> None:
    """Fresh weights for a replaced layer: normal, biases 0, norms 1."""
    for module in ours.layer.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, nn.Parameter):
            if weight.ndim > 1:
                nn.init.normal_(weight, std=std)
            else:
                nn.init.ones_(weight)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def remove(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory out, in place: the untouched base again."""
    take_out(model.get_decoder(), InfiniDecoder)
    take_out(model, InfiniModel)
    slots, ours = decoder_layers(model), infini_slots(model)
    for index, slot in ours.items():
        slots[index] = slot.original
    if ours:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in model.trainable_before)
        del model.infini_config, model.trainable_before, model.get_decoder().infini
    return model


def load(folder: str | Path, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """The model that `save_pretrained` wrote, in evaluation mode.

    base: the base without a memory, used in place; None: found by its recorded name and revision.
    InputError for another base, and for tensors that do not fit.
    """
    folder = Path(folder)
    settings, tensors = storage.read(folder)
    try:
        wanted: dict[str, Any] = settings.pop("base")
        options = {k: v for k, v in settings.items() if k != "format" and v is not None}
        name, revision, fingerprint = (wanted[k] for k in ("model", "revision", "fingerprint"))
        if settings["format"] != 1:
            raise InputError(f"{folder / storage.CONFIG}: format 1 is needed")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / storage.CONFIG}: incomplete: {error}") from None
    base = base or load_model(Base(model=name, revision=revision))
    if infini_slots(base):
        raise InputError("the base has a memory already: infini.remove(base) first")
    if weights_fingerprint(base) != fingerprint:
        raise InputError(
            f"{folder}: made for another base than {base.config._name_or_path!r}: it needs {name!r}"
        )
    try:
        model = retrofit(base, **options)
    except TypeError as error:
        raise InputError(f"{folder / storage.CONFIG}: {error}") from None
    try:
        storage.restore(tensors, model, folder / storage.TENSORS)
    except InputError:
        remove(model)
        raise
    return model.eval()
