"""Put a window with a memory into a pretrained model's attention, and take it out again.

Every layer sees the text's first S tokens and the last W (`infini.memory.window`); the layers
chosen have a memory of what has left the window besides (`infini.memory.associative`), as
Artificial Hippocampus Networks do (arXiv 2510.07318). Untrained, and on any text of up to W + S
tokens whatever was trained, the model is the base with its attention cut to a window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.memory.associative import AssociativeMemory
from infini.memory.eviction import num_recent
from infini.memory.retained import RetainedPairs
from infini.memory.window import ChunkInfo
from infini.model.architectures import CACHE, context_length, decoder_layers
from infini.model.base import weights_fingerprint
from infini.model.class_extension import extend_class, restore_class
from infini.model.decoder_base import Owner
from infini.model.generation import InfiniModel
from infini.model.options import WindowSettings
from infini.model.window.attention import (
    evaluating,
    install_attention,
    instructions,
    uninstall_attention,
)
from infini.model.window.decoder import WindowDecoder
from infini.model.window.layer import PLACE, WindowLayer, WindowRun, window_layers
from infini.model.window.rotation import Positions, find_positions

ASKED = 12  # tokens of the text on which a base is compared with itself through the window
KINDS = ("full_attention", "sliding_attention")  # of layers, as a config names them


def install_window(
    model: PreTrainedModel, layers: Sequence[int] | None = None, **options: Any
) -> PreTrainedModel:
    """Put a window and, in `layers` (None: all; empty: none), a memory into `model`, in place.

    options: of `WindowSettings`. Exactly our tensors are trainable afterwards. InputError for
    what cannot be; the model is untouched then.
    """
    depth = len(decoder_layers(model))
    chosen = range(depth) if layers is None else sorted(set(layers))
    settings = WindowSettings(tuple(chosen), **options)
    if missing := [index for index in chosen if not 0 <= index < depth]:
        raise InputError(f"layers {missing} do not exist, the base has 0 to {depth - 1}")
    longest = _longest(model)
    # The tokens of a block see one window
    rest = num_recent(settings.window) + 1 - settings.window if settings.retained else 0
    if longest is not None and settings.window + settings.sinks + rest > longest:
        raise InputError(
            f"window + sinks: {longest - rest} at most (the base's context"
            f"{f' without {rest}, beside kept pairs' if rest else ''}), "
            f"got {settings.window} + {settings.sinks}"
        )
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if strange := sorted(set(kinds) - set(KINDS)):
        raise InputError(f'method="window": {", ".join(strange)} layers are not known')
    base = {
        "model": model.config.get_text_config()._name_or_path or model.config._name_or_path,
        "revision": getattr(model.config, "_commit_hash", None),
        "fingerprint": weights_fingerprint(model),
    }
    install_attention(model)
    try:
        positions = find_positions(model)
        _put_layers(model, positions, settings)
        _check_same(model, positions, settings)
    except BaseException:
        _take_layers(model)
        uninstall_attention(model)
        raise
    recorded = asdict(settings) | {"layers": list(settings.layers)}
    model.infini_config = {"format": 1, "method": "window", **recorded, "base": base}
    _trainable(model)
    extend_class(model, InfiniModel)
    decoder = model.get_decoder()
    extend_class(decoder, WindowDecoder)
    decoder.infini = Owner(recorded, base=base["fingerprint"])
    decoder.learned_positions = context_length(model) if positions.learned else None
    return model


def _longest(model: PreTrainedModel) -> int | None:
    """Tokens within which the base's positions mean the same in any text; None: no limit."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # turns otherwise in texts that are longer
        original: int = rope["original_max_position_embeddings"]
        return original
    return context_length(model)


def _put_layers(model: PreTrainedModel, positions: Positions, settings: WindowSettings) -> None:
    """A `WindowLayer` in every attention module."""
    for index, (module, (q, k, v), rotation) in enumerate(
        zip(positions.modules, positions.calls, positions.rotations, strict=True)
    ):
        memory, kept, heads = None, None, q.shape[1]
        if index in settings.layers and settings.update != "none":
            widths = k.shape[3], v.shape[3]
            memory = AssociativeMemory(heads, k.shape[1], widths, settings.update)
        if index in settings.layers and settings.retained:
            kept = RetainedPairs(heads, k.shape[1], v.shape[3], settings.retained)
        layer = WindowLayer(index, heads, rotation, memory, kept, _longest(model))
        layer.to(q.device, q.dtype)
        module.add_module(PLACE, layer.train(model.training))


def _trainable(model: PreTrainedModel) -> None:
    """Exactly our tensors."""
    ours = {id(p) for layer in window_layers(model).values() for p in layer.parameters()}
    model.trainable_before = [name for name, p in model.named_parameters() if p.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in ours)


@torch.no_grad()
def _check_same(model: PreTrainedModel, positions: Positions, settings: WindowSettings) -> None:
    """InputError where a text that the window holds is not read as the base reads it."""
    tokens = min(ASKED, context_length(model) or ASKED)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    text = torch.arange(1, tokens + 1, device=model.device)[None] % vocabulary
    counts = torch.zeros(1, dtype=torch.int64)
    run = WindowRun(ChunkInfo(counts, counts + tokens, tokens, tokens, settings.sinks))
    places = torch.arange(tokens, device=model.device)[None] * int(positions.learned)
    decoder = model.get_decoder()
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        base = decoder(input_ids=text, use_cache=False).last_hidden_state
        options = instructions(run, model.device) | {CACHE: None, "use_cache": False}
        ours = decoder(input_ids=text, position_ids=places, **options)
    error = (ours.last_hidden_state - base).abs().max() / base.abs().max()
    if not error < max(1e-3, 30 * torch.finfo(base.dtype).eps):
        raise InputError(
            f'method="window": {type(model).__name__} computes its attention in a way that infini '
            f'does not know (error {error:.2g} on {tokens} tokens): use method="parallel"'
        )


def _take_layers(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, PLACE):
            delattr(module, PLACE)


def uninstall_window(model: PreTrainedModel) -> None:
    """Undo `install_window`; nothing on a model without a window."""
    if not window_layers(model):
        return
    restore_class(model.get_decoder(), WindowDecoder)
    restore_class(model, InfiniModel)
    _take_layers(model)
    uninstall_attention(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trainable_before)
    decoder = model.get_decoder()
    del model.infini_config, model.trainable_before, decoder.infini, decoder.learned_positions


@contextmanager
def windowed(model: PreTrainedModel, window: int, sinks: int = 4) -> Iterator[PreTrainedModel]:
    """Within it, `model` reads any text through a window, without a memory; then as before."""
    install_window(model, (), window=window, sinks=sinks)
    try:
        yield model
    finally:
        uninstall_window(model)
