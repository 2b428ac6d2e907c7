"""Hook into a base's attention through transformers' extension points, for any modeling file.

A base whose attention goes through `AttentionInterface` calls `_dispatch` with its queries, keys,
values and mask, and with the decoder's extra keyword arguments. If one of them is a handler
(`attention_kwargs`), it computes the attention; otherwise the base's own attention function does.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from infini.errors import InputError

# Name of the argument of a forward pass, and of the mask's attribute, that holds the handler
HANDLER = "infini_handler"
# Prefix of our attention implementation's name, before the base's own
PREFIX = "infini_window_"
# Options of an attention function that "sdpa" is computed from, or that do not change its result
SDPA_OPTIONS = {"scaling", "dropout", "position_ids", "use_cache"}

# An attention function of transformers: output (B, T, H, V) and attention weights or None
AttentionFunction = Callable[..., tuple[Tensor, Any]]


class AttentionHandler(Protocol):
    """Attends in every layer of a forward pass, instead of the base's attention function."""

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """Compute a layer's attention.

        Args:
            module: The base's attention module.
            q: Queries, (B, H, T, D).
            k: Keys, (B, G, T, D).
            v: Values, (B, G, T, V).
            implementation: Name of the base's own attention function.
            options: Further arguments of that function.

        Returns:
            The output, (B, T, H, V), and attention weights or None.
        """


def attention_kwargs(handler: AttentionHandler, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a decoder's forward pass that make `handler` attend in every layer.

    The mask is 4D and empty: the base passes a 4D mask on unchanged, instead of building a T × T
    mask of its own. The handler is an attribute of the mask too, for bases whose layers do not
    pass keyword arguments on.
    """
    mask = torch.ones(1, 1, 1, 0, dtype=torch.bool, device=device)
    setattr(mask, HANDLER, handler)
    return {"attention_mask": mask, HANDLER: handler}


def attention_function(implementation: str, module: nn.Module) -> AttentionFunction:
    """Return the base's own attention function of this name."""
    if implementation == "eager":
        eager: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Attend by the handler among the arguments, or by the base's own function."""
    handler: AttentionHandler | None = options.pop(HANDLER, None)
    handler = handler or getattr(attention_mask, HANDLER, None)
    if handler is None and attention_mask is not None and not attention_mask.numel():
        raise InputError(f"{type(module).__name__}: the attention handler was lost on the way")
    if handler is None:
        own = attention_function(implementation, module)
        return own(module, query, key, value, attention_mask, **options)
    return handler.attend(module, query, key, value, implementation, options)


def masked_attention(
    module: nn.Module, implementation: str, options: dict[str, Any], head_dim: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the base's own softmax attention as a function of any q, k, v and mask.

    It includes the base's scale, soft cap and attention sinks.

    Args:
        module: The base's attention module.
        implementation: Name of the base's own attention function.
        options: Further arguments of that function.
        head_dim: Width of a head, D; gives the scale where the base leaves it to the function.

    Returns:
        A function of q (n, H, C, D), k (n, G, M, D), v (n, G, M, V) and mask (n, 1, C, M), True
        where a query may attend, that returns (n, C, H, V); M is any number of keys. Flash
        attention takes no such mask: PyTorch's attention is used instead.
    """
    options = {
        name: x for name, x in options.items() if name not in ("sliding_window", "is_causal")
    }
    if options.get("scaling") is None:
        options["scaling"] = head_dim**-0.5
    softcap = options.get("softcap") is not None
    name = "eager" if implementation == "eager" or softcap else "sdpa"
    own = attention_function(name, module)
    if name == "sdpa" and not options.keys() - SDPA_OPTIONS and not options.get("dropout"):
        return partial(_sdpa, options["scaling"])

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if name == "eager":  # adds the mask to the scores
            lowest = torch.finfo(q.dtype).min
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, lowest)
        return own(module, q, k, v, mask, **options)[0]

    return attend


def _sdpa(scale: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute what transformers' "sdpa" does, by calls that PyTorch's fused kernels accept.

    The kernels need values as wide as keys. With a mask, those on a GPU also need as many
    key-value heads as query heads.
    """
    width, grouped = v.shape[-1], q.device.type == "cpu"
    v = F.pad(v, (0, q.shape[-1] - width))
    if not grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    return out[..., :width].transpose(1, 2)


def install_attention(model: PreTrainedModel) -> None:
    """Set the base's attention implementation to `_dispatch`, in place.

    Raises:
        InputError: The base does not attend through `AttentionInterface`.
    """
    # The name may be set already by another window model that shares the config
    own = model.config._attn_implementation.removeprefix(PREFIX)
    if not model._can_set_attn_implementation():
        raise unsupported_attention(model)
    name = PREFIX + own
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_dispatch, implementation=own))
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    model.set_attn_implementation(name)


def uninstall_attention(model: PreTrainedModel) -> None:
    """Undo `install_attention`, in place."""
    name = model.config._attn_implementation
    if name.startswith(PREFIX):
        model.set_attn_implementation(name.removeprefix(PREFIX))


def unsupported_attention(model: PreTrainedModel) -> InputError:
    """Return the error for a base whose attention does not use `AttentionInterface`."""
    return InputError(
        f'method="window": {type(model).__name__} does not attend through transformers\' '
        'AttentionInterface in every layer: use method="parallel"'
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn off dropout within the block; afterwards every module's mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
