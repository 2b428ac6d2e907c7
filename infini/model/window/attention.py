"""Our place within a base's attention: transformers' own extension points, no modeling file known.

A base whose attention goes through `AttentionInterface` calls us with its queries, keys and
values, with the mask, and with the arguments that its decoder was given and does not know itself.
`instructions` are such arguments: they say what to do. Without them the base's own function runs.
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

RUN = "infini_run"  # the argument of a forward pass, and the mask's attribute
PREFIX = "infini_window_"  # before the name of the base's own implementation

PLAIN = {"scaling", "dropout", "position_ids", "use_cache"}  # options that "sdpa" needs no more of

Own = Callable[..., tuple[Tensor, Any]]  # an attention function of transformers


class AttentionRun(Protocol):
    """What a forward pass puts in the place of the base's attention."""

    def attend(
        self,
        module: nn.Module,
        qkv: tuple[Tensor, Tensor, Tensor],
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """(B, T, H, V) and attention weights or None; qkv: (B, H or G, T, ·) each."""


def instructions(run: AttentionRun, device: torch.device) -> dict[str, Any]:
    """What a decoder is called with, so that `run` attends in every layer.

    A mask of four axes: the base passes it on and makes none of its own, T times T. It has the run
    too, for the bases whose layers keep arguments to themselves; of no size, it means nothing else.
    """
    mask = torch.ones(1, 1, 1, 0, dtype=torch.bool, device=device)
    setattr(mask, RUN, run)
    return {"attention_mask": mask, RUN: run}


def own_function(implementation: str, module: nn.Module) -> Own:
    """The base's own attention function, by its name."""
    if implementation == "eager":
        own: Own = sys.modules[type(module).__module__].eager_attention_forward
        return own
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    **options: Any,
) -> tuple[Tensor, Any]:
    run: AttentionRun | None = options.pop(RUN, None) or getattr(attention_mask, RUN, None)
    if run is None and attention_mask is not None and not attention_mask.numel():
        raise InputError(f"{type(module).__name__}: what it is to do was lost on the way")
    if run is None:
        own = own_function(implementation, module)
        return own(module, query, key, value, attention_mask, **options)
    return run.attend(module, (query, key, value), implementation, options)


def blockwise(
    module: nn.Module, implementation: str, options: dict[str, Any], width: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The base's own softmax, with all that is special about it, on any queries, keys and mask.

    width: D of a head, for the scale where the base leaves it to the function. The mask, (n, 1,
    C, K), is True where a query may look. Flash attention takes none: PyTorch's own then.
    """
    options = {
        name: x for name, x in options.items() if name not in ("sliding_window", "is_causal")
    }
    if options.get("scaling") is None:
        options["scaling"] = width**-0.5
    softcap = options.get("softcap") is not None
    name = "eager" if implementation == "eager" or softcap else "sdpa"
    own = own_function(name, module)
    if name == "sdpa" and not options.keys() - PLAIN and not options.get("dropout"):
        return partial(_plain, options["scaling"])

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        shown = mask
        if name == "eager":
            nothing = torch.finfo(q.dtype).min
            shown = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, nothing)
        return own(module, q, k, v, shown, **options)[0]

    return attend


def _plain(scale: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What transformers' "sdpa" computes, in a way that PyTorch's fused kernels take.

    They ask for values as wide as keys and, under a mask and not on a CPU, for as many key heads
    as query heads.
    """
    width, grouped = v.shape[-1], q.device.type == "cpu"
    v = F.pad(v, (0, q.shape[-1] - width))
    if not grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    return out[..., :width].transpose(1, 2)


def install_attention(model: PreTrainedModel) -> None:
    """Have the base's attention call us; InputError where it does not go through the interface."""
    # A config that another model with a window shares names us already
    own = model.config._attn_implementation.removeprefix(PREFIX)
    if not model._can_set_attn_implementation():
        raise unreachable(model)
    name = PREFIX + own
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_attention, implementation=own))
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    model.set_attn_implementation(name)


def uninstall_attention(model: PreTrainedModel) -> None:
    """Undo `install_attention`."""
    name = model.config._attn_implementation
    if name.startswith(PREFIX):
        model.set_attn_implementation(name.removeprefix(PREFIX))


def unreachable(model: PreTrainedModel) -> InputError:
    """What there is to say of a base whose attention does not call us."""
    return InputError(
        f'method="window": {type(model).__name__} does not attend through transformers\' '
        'AttentionInterface in every layer: use method="parallel"'
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, no dropout; behind it, every module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
