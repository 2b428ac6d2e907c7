"""Base class of our two decoder mixins: cache handling and input checks."""

from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from infini.errors import InputError
from infini.model.architectures import CACHE, take_cache
from infini.model.cache import CHANGED_BASE, MIXED, MemoryCache
from infini.model.peft_adapters import adapter_layers, adapter_tensors
from infini.model.retrofit_config import RetrofitConfig
from infini.model.tensor_files import tensors_state, values_hash

TOKEN_TYPES = (torch.int64, torch.int32)  # that an embedding takes
# Why a cache belongs to no model
MIXED_MEMORY = (
    "the weights or the active adapter changed while the memory read its text, so no model can "
    "continue it elsewhere: read the text again"
)
# Why a model pins no tokens
NO_PINNED = (
    "pinned needs a model with retained pairs: "
    'infini.retrofit(model, "window", retained=K) with K > 0'
)


class KnownBase(Protocol):
    """The base of a retrofitted model."""

    def fingerprint(self) -> str | None:
        """Return what identifies the base; None: it has changed since the retrofit."""


class StatefulDecoder(nn.Module):
    """Decoder whose calls start, continue or reject a cache of ours."""

    # The base's own config
    config: Any
    retrofit_config: RetrofitConfig
    known_base: KnownBase
    # What `fingerprint` was last computed of, and the result
    _fingerprint: tuple[Any, str]
    cache_type: type[MemoryCache]

    def create_cache(self) -> Any:
        """Return an empty cache without an owner."""
        raise NotImplementedError

    def new_cache(self) -> Any:
        """Return an empty cache of this retrofit."""
        cache = self.create_cache()
        cache.dtype = self._dtype_name()
        cache.owner, cache.weights_version = ref(self.retrofit_config), self.weights_version()
        return cache

    def memory_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that decide what a cache means, by name."""
        raise NotImplementedError

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def prepare_cache(
        self,
        kwargs: dict[str, Any],
        use_cache: bool | None,
        inputs: Tensor,
        attention_mask: Tensor | None,
    ) -> Any:
        """Take the cache out of a call's arguments, or start one.

        Args:
            kwargs: the call's further arguments; the cache is removed from them.
            use_cache: as the call's; None: if a cache is given, or the base's config says so.
            inputs: tokens (B, T) or embeddings (B, T, d).
            attention_mask: as the call's, (B, past + T) or None.

        Returns:
            The cache to advance; None: the call keeps none.

        Raises:
            InputError: a cache of another model, or inputs that do not fit it.
        """
        given: Any = take_cache(kwargs)
        if use_cache is None:
            use_cache = given is not None or getattr(self.config, "use_cache", False)
        checkpointing = getattr(self, "gradient_checkpointing", False) and self.training
        keeps_cache = use_cache and not checkpointing
        if given is not None:
            self.validate_cache(given)
            if not keeps_cache:
                raise InputError(f"{CACHE} needs use_cache, without gradient checkpointing")
        self.check_vocabulary(inputs)
        columns = inputs.shape[1] + (0 if given is None else given.max_mask_columns)
        if attention_mask is not None and attention_mask.shape[1] > columns:
            raise InputError(
                f"attention_mask must have ≤ {columns} columns (past and new tokens), "
                f"got {attention_mask.shape[1]}"
            )
        if not keeps_cache:
            return None
        cache = self.new_cache() if given is None else given
        cache.initialize(len(inputs))
        cache.check_mask(attention_mask, inputs.shape[1])
        if cache.records_past:
            cache.take_snapshot()
        return cache

    def validate_cache(self, cache: Any) -> None:
        """Raise InputError for a cache of another kind or of other memory layers."""
        if not isinstance(cache, self.cache_type):
            raise InputError(
                f"{CACHE}: a {type(cache).__name__} cannot hold the memory: pass what an "
                "earlier call of this model returned (prefix tuning, whose keys and values were "
                "never read, is not supported)"
            )
        self._check_dtype(cache)
        if cache.owner is None or cache.owner() is not self.retrofit_config:
            self.adopt_cache(cache)
            return
        # A cache of this retrofit stays valid while training changes the weights, but cannot be
        # saved any more: no model would continue it
        version, cache.weights_version = cache.weights_version, self.weights_version()
        if cache.weights_version != version and cache.fingerprint != MIXED:
            own = self.fingerprint()
            if own != cache.fingerprint:
                cache.fingerprint = MIXED if cache.text.length else own

    def adopt_cache(self, cache: Any) -> None:
        """Become the owner of a cache; InputError if other memory layers wrote it."""
        self._check_dtype(cache)
        if cache.fingerprint == MIXED:
            raise InputError(MIXED_MEMORY)
        if (own := self.fingerprint()) == CHANGED_BASE:
            raise InputError(
                "the base has changed since retrofit, the memory was written with another one: "
                "save it (model.save_pretrained(folder, save_base=BASE_FOLDER)) and read the text "
                "again"
            )
        if not isinstance(cache, self.cache_type) or cache.fingerprint != own:
            raise InputError(
                f"the memory was written by other memory layers (fingerprint {cache.fingerprint}, "
                f"this model's is {own}): load the model that wrote it, or give "
                "this one its settings"
            )
        cache.to(next(self.parameters()).device)
        cache.owner, cache.weights_version = ref(self.retrofit_config), self.weights_version()

    def weights_version(self) -> tuple[Any, ...]:
        """Return what differs once weights or active adapters have changed; no weight is read."""
        active = [
            (layer.disable_adapters, *layer.active_adapters) for layer in adapter_layers(self)
        ]
        return active, [(id(x), x._version) for x in self.parameters()]

    def pinned_positions(
        self, pinned: Any, token_mask: Tensor, cache: MemoryCache | None
    ) -> Tensor | None:
        """Return the positions of all pinned tokens after a call.

        Args:
            pinned: As the call's: which of the new tokens are pinned, (B, T) bool, or None.
            token_mask: Which of them are not padding, (B, T) bool, on the CPU.
            cache: The cache before the call; None: there are no earlier tokens.

        Returns:
            The positions, (B, M) int64, as in `ChunkInfo`; None: no token is pinned.

        Raises:
            InputError: `pinned` is no such mask, or the model cannot retain all these tokens.
        """
        if pinned is not None:
            raise InputError(NO_PINNED)
        return None

    def _check_dtype(self, cache: MemoryCache) -> None:
        """Raise InputError for a cache of a model of another type."""
        if cache.dtype not in (None, self._dtype_name()):
            raise InputError(
                f"the memory was written in {cache.dtype}, this model computes in "
                f"{self._dtype_name()}: load the model with dtype=torch.{cache.dtype}"
            )

    def _dtype_name(self) -> str:
        """Return the type of the weights, as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def fingerprint(self) -> str:
        """Return what identifies the memory layers: their config, base, adapters and weights.

        `CHANGED_BASE` where the base has changed since the retrofit.
        """
        if (base := self.known_base.fingerprint()) is None:
            return CHANGED_BASE
        settings = {**self.retrofit_config.to_dict(), "base": base}
        adapters = {f"peft.{name}": tensor for name, tensor in adapter_tensors(self).items()}
        tensors, text = {**self.memory_parameters(), **adapters}, str(sorted(settings.items()))
        key = text, [*tensors], tensors_state(tensors.values())
        known, fingerprint = getattr(self, "_fingerprint", (None, ""))
        if key != known:  # every new cache asks for it
            fingerprint = values_hash(tensors, text)[:16]
            self._fingerprint = key, fingerprint
        return fingerprint

    def check_vocabulary(self, inputs: Tensor) -> None:
        """Raise InputError for tokens outside the vocabulary, before any advances a cache.

        Skipped on other devices, where the check would wait for all pending work.
        """
        embeddings = self.get_input_embeddings()  # type: ignore[operator]
        if inputs.is_floating_point() or inputs.device.type != "cpu":
            return
        if isinstance(embeddings, nn.Embedding):
            least, most = int(inputs.min()), int(inputs.max())
            if least < 0 or most >= embeddings.num_embeddings:
                raise InputError(
                    f"input_ids must be between 0 and {embeddings.num_embeddings - 1}, "
                    f"got {least if least < 0 else most}"
                )


def select_inputs(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, kwargs: dict[str, Any]
) -> Tensor:
    """Return what a call reads: tokens (B, T) or embeddings (B, T, d).

    Args:
        input_ids: as the call's.
        inputs_embeds: as the call's; exactly one of the two is needed.
        kwargs: the call's further arguments.

    Raises:
        InputError: no tokens, both arguments, wrong shapes or types, or `output_attentions`.
    """
    if input_ids is not None and inputs_embeds is not None:
        raise InputError("give either input_ids or inputs_embeds, got both")
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    if inputs is not None:
        _check_tensor(
            inputs, *(("input_ids", 2) if inputs_embeds is None else ("inputs_embeds", 3))
        )
    if inputs is None or not inputs.shape[0] or not inputs.shape[1]:
        raise InputError("input_ids or inputs_embeds must have at least one token")
    if kwargs.get("output_attentions"):
        raise InputError("output_attentions is not supported by a model with a memory")
    if inputs.is_meta:
        raise InputError("input_ids or inputs_embeds must have values, got the meta device")
    return inputs


def as_tuple(out: ModelOutput) -> tuple[Any, ...]:
    """Return an output as a tuple, in the order of its fields."""
    return type(out)(**out).to_tuple()


def _check_tensor(inputs: Any, name: str, dims: int) -> None:
    """Raise InputError unless `inputs` are tokens (dims=2) or embeddings (dims=3)."""
    if not isinstance(inputs, Tensor) or inputs.ndim != dims:
        shape = ", ".join(("batch", "tokens", "width")[:dims])
        raise InputError(f"{name} must be a tensor ({shape}), got {_describe(inputs)}")
    if inputs.is_floating_point() != (dims == 3):
        kind = "floating-point numbers" if dims == 3 else "integers"
        raise InputError(f"{name} must be {kind}, got {inputs.dtype}")
    if dims == 2 and inputs.dtype not in TOKEN_TYPES:
        raise InputError(f"{name} must be torch.int64 or torch.int32, got {inputs.dtype}")


def _describe(value: Any) -> str:
    """Return a tensor's shape, or what else was given."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def mask_of_new_tokens(attention_mask: Tensor | None, tokens: int) -> Tensor | None:
    """Return the columns of an attention mask, (B, past + T), that stand for the T new tokens."""
    if attention_mask is None:
        return None
    if (
        not isinstance(attention_mask, Tensor)
        or attention_mask.ndim != 2
        or attention_mask.shape[1] < tokens
    ):
        raise InputError(
            f"attention_mask must be a tensor (batch, past + {tokens}), "
            f"got {_describe(attention_mask)}"
        )
    return attention_mask[:, -tokens:]


def check_pinned_mask(pinned: Any, batch: int, tokens: int) -> None:
    """Raise InputError unless `pinned` is a mask of a call's tokens, (B, T) bool."""
    if not isinstance(pinned, Tensor) or pinned.dtype != torch.bool:
        got = pinned.dtype if isinstance(pinned, Tensor) else f"a {type(pinned).__name__}"
        raise InputError(f"pinned must be a tensor of torch.bool, got {got}")
    if pinned.shape != (batch, tokens):
        raise InputError(
            f"pinned must be ({batch}, {tokens}), samples and tokens of the call, "
            f"got {tuple(pinned.shape)}"
        )


def input_kwargs(inputs: Tensor) -> dict[str, Tensor]:
    """Return the inputs under the decoder's argument name for their type."""
    return {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs}


def as_token_mask(attention_mask: Tensor | None, batch: int, tokens: int) -> Tensor:
    """Return which tokens are not padding: (B, T) bool, on the CPU."""
    if attention_mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool)
    return (attention_mask != 0).cpu()
