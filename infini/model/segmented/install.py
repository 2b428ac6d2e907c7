"""Put Infini-attention layers (arXiv 2404.07143) into a pretrained model, and take them out again.

"parallel" keeps a layer and adds to it: layer(x) + α · attention(norm(x)), the base at α = 0.
"replace" puts a copy of the layer in its place whose attention is ours: with the weights of the
base ("teacher", the base within a segment) or fresh ones ("random").
"""

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from infini.choices import Position
from infini.errors import InputError
from infini.memory.attention import HeadConfig, InfiniAttention
from infini.model.architectures import (
    check_replaceable,
    context_length,
    decoder_layers,
    rotary_of,
)
from infini.model.peft_adapters import active_module
from infini.model.segmented.config import ParallelConfig, ReplaceConfig
from infini.model.segmented.init_from_base import attention_from_base
from infini.model.segmented.layers import (
    InfiniAdapter,
    InfiniLayer,
    MemoryModule,
    ParallelAttention,
)


def install_segmented(
    model: PreTrainedModel, config: ParallelConfig | ReplaceConfig
) -> ParallelConfig | ReplaceConfig:
    """Put the layers of `config` into `model`, in place.

    Returns:
        The config with its defaults resolved: layers and position.

    Raises:
        InputError: `config` does not fit this base; the model is unchanged then.
    """
    config = replace(config, layers=[0] if config.layers is None else config.layers)
    _check_fit(model, config)
    slots = decoder_layers(model)
    modules = {index: _build(model, slots[index], index, config) for index in config.layers or ()}
    for index, module in modules.items():
        module.training = model.training
        module.infini_layer.train(model.training)
        slots[index] = module
    default = _base_position(model) if _starts_as_base(config) else "none"
    return replace(config, position=config.position or default)


def uninstall_segmented(model: PreTrainedModel) -> None:
    """Undo `install_segmented`, in place."""
    slots = decoder_layers(model)
    for index, layer in enumerate(map(active_module, slots)):
        if isinstance(layer, MemoryModule):
            slots[index] = layer.original


def _starts_as_base(config: ParallelConfig | ReplaceConfig) -> bool:
    return isinstance(config, ReplaceConfig) and config.init == "teacher"


def _base_position(model: PreTrainedModel) -> Position:
    """Return the positions of the base's attention, as far as ours has the same."""
    return "none" if rotary_of(model) is None else "rope"


def _check_fit(model: PreTrainedModel, config: ParallelConfig | ReplaceConfig) -> None:
    """Raise InputError where `config` does not fit this base."""
    depth = len(decoder_layers(model))
    if missing := [index for index in config.layers or () if index >= depth]:
        raise InputError(f"layers must be between 0 and {depth - 1}, got {missing}")
    longest = context_length(model)
    if longest is not None and config.segment_length > longest:
        raise InputError(
            f"segment_length must be ≤ {longest} (the base's context), got {config.segment_length}"
        )
    if isinstance(config, ReplaceConfig):
        check_replaceable(model)
    own = _base_position(model)
    if _starts_as_base(config) and config.position not in (None, own):
        raise InputError(
            f"position must be {own!r} (the base's own) with init='teacher', "
            f"got {config.position!r}"
        )
    if config.position == "rope" and own != "rope":
        raise InputError(
            "position must be 'none' or 'alibi', the base has no rotary embedding, got 'rope'"
        )


def _build(
    model: PreTrainedModel, original: nn.Module, index: int, config: ParallelConfig | ReplaceConfig
) -> MemoryModule:
    """Return the module that takes the slot of `original`, decoder layer `index`."""
    # Ours alone is moved and cast, never a module of the base
    device = next((p.device for p in original.parameters()), model.device)
    if _starts_as_base(config):
        attention = attention_from_base(model, original, config.segment_length, config.update)
        return InfiniLayer(original, attention.to(device, model.dtype), index)
    base_config = model.config.get_text_config()
    attention = InfiniAttention(
        base_config.hidden_size,
        base_config.num_attention_heads,
        config.segment_length,
        config.update,
        config.local,
        config.position or "none",
        heads=HeadConfig(head_dim=getattr(base_config, "head_dim", None), rotary=rotary_of(model)),
    )
    if isinstance(config, ParallelConfig):
        branch = ParallelAttention(attention, float(config.alpha)).to(device, model.dtype)
        return InfiniAdapter(original, branch, index)
    layer = InfiniLayer(original, attention, index)
    _initialize(layer, base_config.initializer_range)
    attention.to(device, model.dtype)
    return layer


def _initialize(replaced: InfiniLayer, std: float) -> None:
    """Draw fresh weights of a replaced layer: matrices normal, norms 1, biases 0."""
    for module in replaced.infini_layer.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, nn.Parameter):
            if weight.ndim > 1:
                nn.init.normal_(weight, std=std)
            else:
                nn.init.ones_(weight)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
