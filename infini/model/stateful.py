"""What stands in front of a decoder's class and keeps a state between calls has in common."""

from typing import Any

import torch
from torch import Tensor, nn

from infini.errors import InputError
from infini.model.architectures import CACHE, take_cache
from infini.model.base import tensors_fingerprint


class StatefulDecoder(nn.Module):
    """A decoder whose cache is ours: it takes it out of a call, starts one, refuses another's."""

    infini: dict[str, Any]  # the retrofit's settings
    cache_type: type[Any]  # an InfiniCache or a WindowCache

    def new_cache(self) -> Any:
        """An empty state."""
        raise NotImplementedError

    def our_parameters(self) -> dict[str, nn.Parameter]:
        """The memory layers' tensors, which decide what a state means."""
        raise NotImplementedError

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def take_state(self, arguments: dict[str, Any], use_cache: bool | None, batch: int) -> Any:
        """The state to move on, out of a call's arguments; None: none is kept."""
        given: Any = take_cache(arguments)
        if given is not None and not isinstance(given, self.cache_type):
            raise InputError(
                f"{CACHE}: a {type(given).__name__} cannot hold the memory: pass what an "
                "earlier call of this model returned"
            )
        if use_cache is None:
            use_cache = given is not None or getattr(self.config, "use_cache", False)
        checkpointing = getattr(self, "gradient_checkpointing", False) and self.training
        if not use_cache or checkpointing:
            if given is not None:
                raise InputError(f"{CACHE} needs use_cache, without gradient checkpointing")
            return None
        cache = self.new_cache() if given is None else given
        if not cache.checked:
            self.check(cache)
        cache.start(batch)
        return cache

    def check(self, cache: Any) -> None:
        """Take a loaded state, or refuse one that other memory layers wrote (InputError)."""
        if not isinstance(cache, self.cache_type) or cache.fingerprint != self.fingerprint():
            raise InputError(
                f"the memory was written by other memory layers (fingerprint {cache.fingerprint}, "
                f"this model's is {self.fingerprint()}): load the model that wrote it, or give "
                "this one its settings"
            )
        cache.to(next(self.parameters()).device).checked = True

    def fingerprint(self) -> str:
        """Identifies the memory layers: their settings and weights."""
        return tensors_fingerprint(self.our_parameters(), str(sorted(self.infini.items())))


def inputs_of(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, kwargs: dict[str, Any]
) -> Tensor:
    """What a call is to read: tokens (B, T) or embeddings (B, T, d).

    InputError for nothing at all, and for what no model with a memory returns.
    """
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    if inputs is None or not inputs.shape[1]:
        raise InputError("input_ids or inputs_embeds: at least one token is needed")
    if kwargs.get("output_attentions"):
        raise InputError("output_attentions: a model with memory does not return them")
    kwargs.pop("return_dict", None)
    return inputs


def newest(mask: Tensor | None, tokens: int) -> Tensor | None:
    """The part of a (B, past + T) mask that concerns the T new tokens."""
    if mask is None:
        return None
    if mask.ndim != 2 or mask.shape[1] < tokens:
        raise InputError(
            f"attention_mask: (batch, past + {tokens}) is needed, got {tuple(mask.shape)}"
        )
    return mask[:, -tokens:]


def named(inputs: Tensor) -> dict[str, Tensor]:
    """The inputs as a decoder's argument."""
    return {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs}


def real_tokens(mask: Tensor | None, batch: int, tokens: int) -> Tensor:
    """Which are not padding: (B, T), on the CPU."""
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool)
    return (mask != 0).cpu()
