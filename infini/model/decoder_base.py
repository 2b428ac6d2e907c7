"""What stands in front of a decoder's class and keeps a state between calls has in common."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from infini.errors import InputError
from infini.model.architectures import CACHE, take_cache
from infini.model.base import tensors_fingerprint


class Owner(dict[str, Any]):
    """The settings of one retrofit; a cache knows by them, by a weak reference, whose it is."""


class StatefulDecoder(nn.Module):
    """A decoder whose cache is ours: it takes it out of a call, starts one, refuses another's."""

    infini: Owner
    cache_type: type[Any]  # an SegmentedCache or a WindowCache

    def empty_cache(self) -> Any:
        """An empty state, which is nobody's yet."""
        raise NotImplementedError

    def new_cache(self) -> Any:
        """An empty state."""
        cache = self.empty_cache()
        cache.owner = ref(self.infini)
        return cache

    def our_parameters(self) -> dict[str, nn.Parameter]:
        """The memory layers' tensors, which decide what a state means."""
        raise NotImplementedError

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def take_state(
        self, arguments: dict[str, Any], use_cache: bool | None, inputs: Tensor, mask: Tensor | None
    ) -> Any:
        """The state to move on, out of a call's arguments; None: none is kept.

        inputs: (B, T) or (B, T, d); mask: as the call's. InputError for what does not fit it.
        """
        given: Any = take_cache(arguments)
        if use_cache is None:
            use_cache = given is not None or getattr(self.config, "use_cache", False)
        checkpointing = getattr(self, "gradient_checkpointing", False) and self.training
        kept = use_cache and not checkpointing
        if given is not None:
            self.accept(given)
            if not kept:
                raise InputError(f"{CACHE} needs use_cache, without gradient checkpointing")
        self._check_tokens(inputs)
        columns = inputs.shape[1] + (0 if given is None else given.columns)
        if mask is not None and mask.shape[1] > columns:
            raise InputError(
                f"attention_mask: {columns} columns at most, past and new tokens, are needed, "
                f"got {mask.shape[1]}"
            )
        if not kept:
            return None
        cache = self.new_cache() if given is None else given
        cache.start(len(inputs))
        return cache

    def accept(self, cache: Any) -> None:
        """InputError for a state that is not this retrofit's; a check of weights for another's."""
        if not isinstance(cache, self.cache_type):
            raise InputError(
                f"{CACHE}: a {type(cache).__name__} cannot hold the memory: pass what an "
                "earlier call of this model returned"
            )
        # Training changes the weights, and the state goes on
        if cache.owner is None or cache.owner() is not self.infini:
            self.check(cache)

    def check(self, cache: Any) -> None:
        """Take another's state, or refuse one that other memory layers wrote (InputError)."""
        if not isinstance(cache, self.cache_type) or cache.fingerprint != self.fingerprint():
            raise InputError(
                f"the memory was written by other memory layers (fingerprint {cache.fingerprint}, "
                f"this model's is {self.fingerprint()}): load the model that wrote it, or give "
                "this one its settings"
            )
        cache.to(next(self.parameters()).device).owner = ref(self.infini)

    def fingerprint(self) -> str:
        """Identifies the memory layers: their settings and weights."""
        return tensors_fingerprint(self.our_parameters(), str(sorted(self.infini.items())))

    def _check_tokens(self, inputs: Tensor) -> None:
        """InputError for tokens outside the vocabulary, before any of them moves a state.

        On another device the question would wait for all that it has to do.
        """
        table = self.get_input_embeddings()  # type: ignore[operator]
        if inputs.is_floating_point() or inputs.device.type != "cpu":
            return
        if isinstance(table, nn.Embedding):
            least, most = int(inputs.min()), int(inputs.max())
            if least < 0 or most >= table.num_embeddings:
                raise InputError(
                    f"input_ids: tokens from 0 to {table.num_embeddings - 1} are needed, "
                    f"got {least if least < 0 else most}"
                )


def inputs_of(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, kwargs: dict[str, Any]
) -> Tensor:
    """What a call is to read: tokens (B, T) or embeddings (B, T, d).

    InputError for nothing at all, and for what no model with a memory returns.
    """
    if input_ids is not None and inputs_embeds is not None:
        raise InputError("input_ids and inputs_embeds: one of the two is needed, got both")
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    if inputs is not None:
        _check_shape(inputs, ("input_ids", 2) if inputs_embeds is None else ("inputs_embeds", 3))
    if inputs is None or not inputs.shape[0] or not inputs.shape[1]:
        raise InputError("input_ids or inputs_embeds: at least one token is needed")
    if kwargs.get("output_attentions"):
        raise InputError("output_attentions: a model with memory does not return them")
    kwargs.pop("return_dict", None)
    return inputs


def _check_shape(inputs: Any, wanted: tuple[str, int]) -> None:
    """InputError for what is no tensor of the axes wanted; wanted: the argument, how many.

    With two they are tokens, with three embeddings.
    """
    name, axes = wanted
    if not isinstance(inputs, Tensor) or inputs.ndim != axes:
        needed = ", ".join(("batch", "tokens", "width")[:axes])
        raise InputError(f"{name}: a tensor ({needed}) is needed, got {_shown(inputs)}")
    if inputs.is_floating_point() != (axes == 3):
        kind = "floating-point" if axes == 3 else "whole"
        raise InputError(f"{name}: {kind} numbers are needed, got {inputs.dtype}")


def _shown(given: Any) -> str:
    """A tensor's shape, or what else was given."""
    return str(tuple(given.shape)) if isinstance(given, Tensor) else f"a {type(given).__name__}"


def newest(mask: Tensor | None, tokens: int) -> Tensor | None:
    """The part of a (B, past + T) mask that concerns the T new tokens."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < tokens:
        raise InputError(
            f"attention_mask: a tensor (batch, past + {tokens}) is needed, got {_shown(mask)}"
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
