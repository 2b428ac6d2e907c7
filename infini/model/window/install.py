"""Put a sliding window with a memory into a pretrained model's attention, and take it out again.

The layers attend to the first S tokens of a text and to the last W (`infini.memory.window`);
the chosen ones also have a memory of what has left the window, a matrix
(`infini.memory.associative`) and retained pairs (`infini.memory.retained`). The design is that of
Artificial Hippocampus Networks (arXiv 2510.07318). Untrained, the model is the base with sliding
window attention; on texts of up to W + S tokens its output is the base's, trained or not.

Where some layers have a sliding window of the base's own (Gemma 3), those hold a constant number of
tokens already: they keep their window unless they are chosen.
"""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.memory.associative import AssociativeMemory
from infini.memory.eviction import RetentionPolicy, num_recent
from infini.memory.retained import RetainedPairs
from infini.memory.window import ChunkInfo
from infini.model.architectures import CACHE, context_length, decoder_layers
from infini.model.window.attention import (
    attention_kwargs,
    evaluation_mode,
    install_attention,
    uninstall_attention,
)
from infini.model.window.config import WindowConfig
from infini.model.window.layer import SUBMODULE, WindowHandler, WindowLayer
from infini.model.window.rotation import BaseAttentions, probe_attention

# Tokens of the text on which the base is compared with itself through the window
CHECK_TOKENS = 12
# Layer types, as a base's config names them, that a window can replace
LAYER_TYPES = ("full_attention", "sliding_attention")


def install_window(
    model: PreTrainedModel, config: WindowConfig, policy: RetentionPolicy
) -> WindowConfig:
    """Put a window into `model` and a memory into the layers of `config`, in place.

    Args:
        model: The base.
        config: Options of the window.
        policy: Retention policy of all layers.

    Returns:
        The config with its layers resolved.

    Raises:
        InputError: `config` does not fit this base, or its attention cannot be replaced; the
            model is unchanged then.
    """
    _check_config(model, config)
    install_attention(model)
    try:
        attentions = probe_attention(model)
        _check_sliding_windows(model, attentions.sliding_windows)
        if config.layers is None:
            config = replace(config, layers=_default_layers(attentions))
        _add_layers(model, attentions, config, policy)
        _check_equals_base(model, attentions.learned_positions, config.sinks)
    except BaseException:
        _remove_layers(model)
        uninstall_attention(model)
        raise
    decoder, windows = model.get_decoder(), attentions.sliding_windows
    decoder.learned_positions = context_length(model) if attentions.learned_positions else None
    decoder.own_sliding_window = min((w for w in windows if w is not None), default=None)
    return config


def uninstall_window(model: PreTrainedModel) -> None:
    """Undo `install_window`, in place."""
    _remove_layers(model)
    uninstall_attention(model)
    del model.get_decoder().learned_positions, model.get_decoder().own_sliding_window


def _check_config(model: PreTrainedModel, config: WindowConfig) -> None:
    """Raise InputError where `config` does not fit this base."""
    depth = len(decoder_layers(model))
    if missing := [index for index in config.layers or () if index >= depth]:
        raise InputError(f"layers must be between 0 and {depth - 1}, got {missing}")
    longest = _longest_text(model)
    # With retained pairs, the window of a block's last query begins where its first query's does
    reserved_tokens = num_recent(config.window) + 1 - config.window if config.retained else 0
    if longest is not None and config.window + config.sinks + reserved_tokens > longest:
        reserved = f", {reserved_tokens} of which retained pairs need" if reserved_tokens else ""
        raise InputError(
            f"window + sinks must be ≤ {longest - reserved_tokens} (the base's context of {longest}"
            f"{reserved}), got {config.window} + {config.sinks}"
        )
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if unknown := sorted(set(types) - set(LAYER_TYPES)):
        raise InputError(f'method="window": {", ".join(unknown)} layers are not supported')


def _check_sliding_windows(model: PreTrainedModel, found: list[int | None]) -> None:
    """Raise InputError where the base masks windows that its attention function is not told."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(found)
    expected = [window if kind == "sliding_attention" else None for kind in types]
    if found != expected:
        raise InputError(
            f'method="window": {type(model).__name__} has sliding windows that infini does not see '
            f'({expected} by its config, {found} in its attention): use method="parallel"'
        )


def _default_layers(attentions: BaseAttentions) -> list[int]:
    """Return the layers that attend to all tokens; if every layer has a sliding window, all."""
    windows = attentions.sliding_windows
    return [i for i, window in enumerate(windows) if window is None] or list(range(len(windows)))


def _longest_text(model: PreTrainedModel) -> int | None:
    """Return the tokens of the longest text with the base's own positions; None: no limit."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # other frequencies in longer texts
        original: int = rope["original_max_position_embeddings"]
        return original
    return context_length(model)


def _add_layers(
    model: PreTrainedModel,
    attentions: BaseAttentions,
    config: WindowConfig,
    policy: RetentionPolicy,
) -> None:
    """Add a `WindowLayer` to every attention module."""
    layers, default_layers = config.layers or (), _default_layers(attentions)
    for index, (module, (q, k, v)) in enumerate(
        zip(attentions.modules, attentions.qkv, strict=True)
    ):
        memory, retained, kept_window = None, None, None
        heads, kv_heads = q.shape[1], k.shape[1]
        widths = k.shape[3], v.shape[3]
        if index in layers and config.update != "none":
            memory = AssociativeMemory(heads, kv_heads, widths, config.update)
        if index in layers and config.retained:
            retained = RetainedPairs(heads, kv_heads, widths, config.retained, policy, index)
        if index not in layers and index not in default_layers:
            kept_window = attentions.sliding_windows[index]
        rotation, context = attentions.rotations[index], _longest_text(model)
        layer = WindowLayer(index, heads, rotation, memory, retained, context, kept_window)
        layer.to(q.device, q.dtype)
        module.add_module(SUBMODULE, layer.train(model.training))


def _remove_layers(model: PreTrainedModel) -> None:
    for module in model.modules():
        if SUBMODULE in module._modules:
            delattr(module, SUBMODULE)


@torch.no_grad()
def _check_equals_base(model: PreTrainedModel, learned_positions: bool, sinks: int) -> None:
    """Raise InputError unless the window gives a short text the base's own hidden states."""
    tokens = min(CHECK_TOKENS, context_length(model) or CHECK_TOKENS)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = torch.arange(1, tokens + 1, device=model.device)[None] % vocabulary
    past = torch.zeros(1, dtype=torch.int64)
    handler = WindowHandler(ChunkInfo(past, past + tokens, tokens, tokens, sinks))
    position_ids = torch.arange(tokens, device=model.device)[None] * int(learned_positions)
    decoder = model.get_decoder()
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        expected = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        kwargs = attention_kwargs(handler, model.device) | {CACHE: None, "use_cache": False}
        try:
            result = decoder(input_ids=input_ids, position_ids=position_ids, **kwargs)
        except RuntimeError as problem:  # its attention computes with the mask (Doge)
            raise _unsupported(model, str(problem)) from problem
    error = (result.last_hidden_state - expected).abs().max() / expected.abs().max()
    if not error < max(1e-3, 30 * torch.finfo(expected.dtype).eps):
        raise _unsupported(model, f"error {error:.2g} on {tokens} tokens")


def _unsupported(model: PreTrainedModel, problem: str) -> InputError:
    """Return the error for a base whose attention is not what its arguments say."""
    return InputError(
        f'method="window": {type(model).__name__} has an attention that infini does not support '
        f'({problem}): use method="parallel"'
    )
