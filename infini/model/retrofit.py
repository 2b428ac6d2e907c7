"""Put the memory into a pretrained model, and take it out again.

`parallel` keeps a layer and adds to it: layer(x) + α · attention(norm(x)), the base at
α = 0. `replace` puts a copy of the layer in its place, its attention ours: of the base's
own weights ("teacher", the base within a segment), or freshly initialised ("random").
`window`: every layer's own attention sees a window, see `infini.model.window.install`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Unpack

import torch
from torch import nn
from transformers import PreTrainedModel

from infini.choices import Method, Position
from infini.errors import InputError
from infini.memory.attention import Heads, InfiniAttention
from infini.model.architectures import (
    check_replaceable,
    context_length,
    decoder_layers,
    is_encoder,
    rotary_of,
)
from infini.model.base import weights_fingerprint
from infini.model.class_extension import extend_class, restore_class
from infini.model.decoder_base import Owner
from infini.model.generation import InfiniModel
from infini.model.options import Options, Settings, check_layers, check_options
from infini.model.segmented.decoder import InfiniDecoder
from infini.model.segmented.init_from_base import teacher_attention
from infini.model.segmented.layers import (
    InfiniAdapter,
    InfiniLayer,
    MemoryModule,
    has_memory,
    infini_parameters,
    segmented_layers,
)
from infini.model.window.install import install_window, uninstall_window
from infini.model.window.layer import window_layers


def retrofit(
    model: PreTrainedModel,
    method: Method = "parallel",
    layers: Sequence[int] | None = None,
    segment_length: int | None = None,
    **options: Unpack[Options],
) -> PreTrainedModel:
    """Put the memory into `model`, in place; exactly our tensors are trainable afterwards.

    method: "parallel", layer(x) + α · attention(norm(x)); "replace", attention of arXiv 2404.07143
    in a layer's place; "window", see below, of the shape of arXiv 2510.07318. Returns `model`.
    layers: decoder layers, from 0 (the first; a window's: all). The rest are `options`, by name.
    update: of the memory, "delta" (default), "linear" or, of what leaves a window, "gated_delta".

    "window": every layer sees the last `window` tokens (256) and the first `sinks` (4), together
    at most the base's context; layers=[]: without a memory. kept: pairs of key and value that a
    head keeps behind the window, those attended to most of late (0); update="none": they alone.

    Else segment_length: tokens (256), at most the base's context. local: attention within a
    segment, "softmax" (default) or "linear". position: of the local attention, "none", "alibi" or
    "rope"; by default the base's own with init="teacher", else none. alpha: where α starts
    (parallel; 0.0). init: of a replaced layer, "teacher" (default) or "random". segmented: every
    layer sees one segment, the memory alone crosses them (default); False: the other layers keep
    their full attention.

    InputError for what cannot be; the model is untouched then.
    """
    given: dict[str, Any] = dict(options)
    if segment_length is not None:
        given["segment_length"] = segment_length
    check_options(method, given)
    check_layers(layers)
    _check_model(model)
    if method == "window":
        return install_window(model, layers, **given)
    chosen = (0,) if layers is None else tuple(sorted(set(layers)))
    settings = Settings(method, chosen, **given)
    _check(model, settings)
    slots = decoder_layers(model)
    modules = {index: _module(model, index, settings) for index in settings.layers}
    model.infini_config = _config(model, settings)
    model.trainable_before = [name for name, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    for index, module in modules.items():
        slots[index] = module.to(model.device, model.dtype).train(model.training)
    for tensor in infini_parameters(model).values():
        tensor.requires_grad_(True)
    extend_class(model, InfiniModel)
    decoder = model.get_decoder()
    extend_class(decoder, InfiniDecoder)
    decoder.infini = Owner({k: v for k, v in model.infini_config.items() if k != "base"})
    return model


def untrained(model: PreTrainedModel, seed: int, options: dict[str, Any]) -> PreTrainedModel:
    """`retrofit` with a version's options; `seed` decides the fresh weights."""
    torch.manual_seed(seed)
    return retrofit(model, **options)


def _check_model(model: PreTrainedModel) -> None:
    """InputError where no memory can be put into it."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model: a causal language model of transformers is needed, got {type(model).__name__}"
        )
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__}: a causal language model is needed")
    if is_encoder(model):
        raise InputError(
            f"{type(model).__name__}: a causal language model is needed, this one reads its text "
            "in both directions"
        )
    if not getattr(model.config.get_text_config(), "num_attention_heads", None):
        raise InputError(f"{type(model).__name__}: a base that attends is needed, it has no heads")
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel):
        raise InputError(f"{type(model).__name__}: its decoder, without the head, is not found")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise InputError(
            f"{type(model).__name__}: some of its weights are on the meta device, without values: "
            "load them first, none offloaded"
        )
    if has_memory(model):
        raise InputError("the model has a memory already: infini.remove(model) first")


def _check(model: PreTrainedModel, settings: Settings) -> None:
    """InputError where these settings do not fit this base."""
    depth = len(decoder_layers(model))
    if missing := [index for index in settings.layers if index >= depth]:
        raise InputError(f"layers {missing} do not exist, the base has 0 to {depth - 1}")
    longest = context_length(model) or settings.segment_length
    if not 1 <= settings.segment_length <= longest:
        raise InputError(
            f"segment_length: 1 to {longest} (the base's context), got {settings.segment_length}"
        )
    if settings.method == "replace":
        check_replaceable(model)
    own = _own_position(model)
    kept = settings.local == "softmax" and settings.position in (None, own)
    if settings.taught and not kept:
        raise InputError(f'init="teacher" keeps the base\'s own: local="softmax", position="{own}"')
    if settings.position == "rope" and own != "rope":
        raise InputError('position: the base has no rotary embedding, use "none" or "alibi"')


def _own_position(model: PreTrainedModel) -> Position:
    """Of the base's attention, as far as ours can do the same."""
    return "none" if rotary_of(model) is None else "rope"


def _module(model: PreTrainedModel, index: int, settings: Settings) -> MemoryModule:
    """What goes into the place of a decoder layer."""
    original = decoder_layers(model)[index]
    if settings.taught:
        attention = teacher_attention(model, original, settings.segment_length, settings.update)
        return InfiniLayer(original, attention, index)
    config = model.config.get_text_config()
    attention = InfiniAttention(
        config.hidden_size,
        config.num_attention_heads,
        settings.segment_length,
        settings.update,
        settings.local,
        settings.position or "none",
        heads=Heads(head_dim=getattr(config, "head_dim", None), rotary=rotary_of(model)),
    )
    if settings.method == "parallel":
        return InfiniAdapter(original, attention, index, float(settings.alpha))
    layer = InfiniLayer(original, attention, index)
    _initialise(layer, config.initializer_range)
    return layer


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


def _config(model: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    """What infini_config.json records: the settings, and which base they belong to."""
    recorded = asdict(settings)
    del recorded["alpha"]  # trained, hence among the tensors
    default = _own_position(model) if settings.taught else "none"
    return {
        "format": 1,
        **recorded,
        "layers": list(settings.layers),
        "position": settings.position or default,
        "init": settings.init if settings.method == "replace" else None,
        "base": {
            "model": model.config.get_text_config()._name_or_path or model.config._name_or_path,
            "revision": getattr(model.config, "_commit_hash", None),
            "fingerprint": weights_fingerprint(model),
        },
    }


def remove(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory out of `model`, in place: the untouched base again; InputError for no model.

    One without a memory stays as it is.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"remove: a model is needed, got {type(model).__name__}")
    if window_layers(model):
        uninstall_window(model)
        return model
    restore_class(model.get_decoder(), InfiniDecoder)
    restore_class(model, InfiniModel)
    slots, ours = decoder_layers(model), segmented_layers(model)
    for index, module in ours.items():
        slots[index] = module.original
    if ours:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in model.trainable_before)
        del model.infini_config, model.trainable_before, model.get_decoder().infini
    return model
