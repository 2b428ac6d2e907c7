"""Put a memory into a pretrained model, and take it out again.

The methods are installed by `infini.model.window.install` and `infini.model.segmented.install`;
here is what they share: the options, the checks of the base, the trainable parameters and the
classes of the model and its decoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from infini.choices import Method, check_choice
from infini.errors import InputError
from infini.memory.eviction import RetentionPolicy, as_policy, policy_by_name
from infini.model.architectures import is_encoder
from infini.model.base_identity import FINGERPRINT, RetrofittedBase, describe_base
from infini.model.class_extension import extend_class, restore_class
from infini.model.generation import RetrofittedModel
from infini.model.modules import has_memory, trained_parameters, window_layers
from infini.model.peft_adapters import check_no_adapters
from infini.model.retrofit_config import RetrofitConfig
from infini.model.segmented.config import ParallelConfig, ReplaceConfig
from infini.model.segmented.decoder import SegmentedDecoder
from infini.model.segmented.install import install_segmented, uninstall_segmented
from infini.model.window.config import WindowConfig
from infini.model.window.decoder import WindowDecoder
from infini.model.window.install import install_window, uninstall_window

CONFIG_CLASSES: dict[str, type[RetrofitConfig]] = {
    config.method: config for config in (ParallelConfig, ReplaceConfig, WindowConfig)
}


def retrofit(
    model: PreTrainedModel,
    method: Method = "parallel",
    layers: Sequence[int] | None = None,
    segment_length: int | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Put a memory into `model`, in place; exactly the added parameters are trainable afterwards.

    Args:
        model: Causal language model of transformers, without a memory.
        method: Where the memory goes.

            - `"window"`: layers attend to the first `sinks` and the last `window` tokens; the
              chosen ones have a memory of what has left the window (the design of
              arXiv 2510.07318): a matrix, and evicted key-value pairs that are retained. Where
              some layers have a sliding window of the base's own, those not chosen keep it.
            - `"parallel"`: layer(x) + α · attention(norm(x)), the attention of arXiv 2404.07143.
            - `"replace"`: a copy of the layer whose attention is that of arXiv 2404.07143.
        layers: Decoder layers that get a memory, counted from 0. None: the first ("parallel",
            "replace"), or those without a sliding window of the base's own, all if every layer has
            one ("window"). []: none, the plain sliding window ("window").
        segment_length: Tokens of a segment ("parallel", "replace"; 256), at most the base's
            context.
        **options: Further options of the method, by name.

            - `update`: write rule of the memory, "delta" (default) or "linear"; "window" also has
              "gated_delta" and "none" (no matrix).

            With "window":

            - `window`: last tokens that are attended to exactly (256).
            - `sinks`: first tokens of a text that are always attended to (4); `window` + `sinks`
              at most the base's context.
            - `retained`: evicted key-value pairs that each key-value head retains (0). Tokens that
              a call pins, `model(input_ids, pinned=mask)`, are among them at any length.
            - `policy`: retention policy that selects these pairs, a registered name or an
              instance of `infini.RetentionPolicy` ("decayed_attention").

            With "parallel" and "replace":

            - `local`: attention within a segment, "softmax" (default) or "linear".
            - `position`: positions of the local attention, "none", "alibi" or "rope"; None
              (default): the base's own with init="teacher", else "none".
            - `segmented`: True (default): every layer sees one segment, only the memory crosses
              segments; False: the other layers keep their full attention.
            - `alpha` ("parallel"): initial value of α (0.0, which is the base).
            - `init` ("replace"): initial weights, "teacher" (default): those of the layer, which
              is the base within a segment; "random": fresh ones.

    Returns:
        `model` itself, still of its own class, with `model.infini_config`: the options and the
        base that they were used on.

    Raises:
        InputError: an option that does not exist or fit, a base that cannot have this memory. The
            model is unchanged then.

    Examples:
        >>> model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        >>> model = infini.retrofit(model, "window", window=256, sinks=4, retained=128)
        >>> model.generate(input_ids, max_new_tokens=20)  # of any length, in constant memory
    """
    if segment_length is not None:
        options["segment_length"] = segment_length
    check_no_adapters(
        model,
        "merge them, save the base and retrofit that (model.merge_and_unload()), or retrofit the "
        "base alone and put peft around it",
    )
    return retrofit_known(model, None, method, layers, **options)


def retrofit_known(
    model: PreTrainedModel,
    base: dict[str, Any] | None,
    /,
    method: Method,
    layers: Sequence[int] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Retrofit a base whose weights are known: they are not hashed again.

    Args:
        model: as of `retrofit`.
        base: what `describe_base` returned of it; None: it is described here.
        method: as of `retrofit`.
        layers: as of `retrofit`.
        **options: as of `retrofit`, `segment_length` included.

    Returns:
        `model` itself.

    Raises:
        InputError: as of `retrofit`.
    """
    check_choice("method", method, Method)
    options["layers"] = _as_list(layers)
    policy = None
    if "policy" in options:
        policy = as_policy(options["policy"])
        options["policy"] = policy.name
    config = CONFIG_CLASSES[method].from_dict(options)
    _check_base(model)
    base = base or describe_base(model)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if isinstance(config, WindowConfig):
        config = install_window(model, config, policy or policy_by_name(config.policy))
    else:
        assert isinstance(config, ParallelConfig | ReplaceConfig)
        config = install_segmented(model, config)
    model.infini_config = {**config.to_dict(), "base": base}
    model.trainable_before = trainable
    added = {id(parameter) for parameter in trained_parameters(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in added)
    decoder = model.get_decoder()
    decoder.retrofit_config, decoder.known_base = config, RetrofittedBase(model)
    extend_class(model, RetrofittedModel)
    extend_class(decoder, WindowDecoder if method == "window" else SegmentedDecoder)
    return model


def retrofit_with_seed(
    model: PreTrainedModel, seed: int, options: dict[str, Any]
) -> PreTrainedModel:
    """Return `retrofit(model, **options)`, its fresh weights decided by `seed`."""
    torch.manual_seed(seed)
    return retrofit(model, **options)


def remove(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory out of `model`, in place.

    Args:
        model: a retrofitted model; one without a memory stays as it is.

    Returns:
        `model` itself: the base with its own weights, class and trainable parameters.

    Raises:
        InputError: `model` is no model of transformers, or has adapters of peft.
    """
    check_no_adapters(model, "unload them first: model.unload()")
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model must be a model of transformers, got {type(model).__name__}")
    if not has_memory(model):
        return model
    decoder = model.get_decoder()
    restore_class(model, RetrofittedModel)
    if window_layers(model):
        restore_class(decoder, WindowDecoder)
        uninstall_window(model)
    else:
        restore_class(decoder, SegmentedDecoder)
        uninstall_segmented(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trainable_before)
    del model.infini_config, model.trainable_before
    del decoder.retrofit_config, decoder.known_base
    return model


@contextmanager
def sliding_window(
    model: PreTrainedModel, window: int, sinks: int = 4
) -> Iterator[PreTrainedModel]:
    """Read any text with the base through a sliding window with sinks, without a memory.

    Args:
        model: the base; it is restored after the block.
        window: last tokens that are attended to.
        sinks: first tokens that are attended to (StreamingLLM, arXiv 2309.17453).

    Yields:
        `model`, retrofitted with `layers=[]`.
    """
    with _untrained_window(model, layers=[], window=window, sinks=sinks):
        yield model


@contextmanager
def retained_pairs(
    base: PreTrainedModel,
    policy: str | RetentionPolicy,
    window: int,
    sinks: int,
    retained: int,
) -> Iterator[PreTrainedModel]:
    """Read any text with a base, a sliding window with sinks and retained pairs, untrained.

    Args:
        base: The base; it is restored after the block.
        policy: Retention policy, a registered name or an object.
        window: Last tokens that are attended to.
        sinks: First tokens that are attended to.
        retained: Evicted pairs that a key-value head retains.

    Yields:
        `base`, retrofitted with `update="none"`: no matrix.

    Raises:
        InputError: No such policy, or an option that does not fit.
    """
    options: dict[str, Any] = {"retained": retained, "policy": policy, "update": "none"}
    with _untrained_window(base, window=window, sinks=sinks, **options):
        yield base


@contextmanager
def _untrained_window(model: PreTrainedModel, **options: Any) -> Iterator[None]:
    """Retrofit a window within the block; never saved, so that its base needs no identity."""
    retrofit_known(model, {"model": "", "revision": None, FINGERPRINT: ""}, "window", **options)
    try:
        yield
    finally:
        remove(model)


def _as_list(layers: Sequence[int] | None) -> list[int] | None:
    """Return the layers in order, each once; InputError for no sequence."""
    if layers is None:
        return None
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise InputError(f"layers must be a list of integers, got {layers!r}")
    if all(type(layer) is int for layer in layers):
        return sorted(set(layers))
    return list(layers)


def _check_base(model: PreTrainedModel) -> None:
    """Raise InputError where no memory can be put into `model`."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model must be a causal language model of transformers, got {name}")
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise InputError(f"{name}: the model must be a causal language model")
    if is_encoder(model):
        raise InputError(
            f"{name}: the model must be a causal language model, this one attends in both "
            "directions"
        )
    if not getattr(model.config.get_text_config(), "num_attention_heads", None):
        raise InputError(f"{name}: the model must have attention, its config has no heads")
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel):
        raise InputError(f"{name}: the model has no decoder apart from its head")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise InputError(
            f"{name}: some weights are on the meta device, without values: load the model without "
            "offloading"
        )
    if has_memory(model):
        raise InputError("the model has a memory already: infini.remove(model) first")
