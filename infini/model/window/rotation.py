"""Finds a base's rotary embeddings by probing it, without a table of architectures.

A one-token text attends to nothing else, so its hidden states do not depend on its position,
unless positions are added to the embedding. Comparing queries and keys of one-token texts at
several positions with those at position 0 therefore gives each layer's rotation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.model.architectures import CACHE, context_length, decoder_layers
from infini.model.window.attention import (
    HANDLER,
    attention_function,
    attention_kwargs,
    evaluation_mode,
    unsupported_attention,
)

PROBE_POSITIONS = (1, 3, 7, 20)
# Queries (B, H, T, D), keys (B, G, T, D) and values (B, G, T, V)
QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding of a layer's queries and keys, computed in float32."""

    # The base's own rotary embedding: returns cos and sin of positions
    module: nn.Module
    # Further arguments of `module`: the layer's type, where it needs that
    arguments: tuple[str, ...]
    # Layout of the angles in cos and sin: each "once"; twice, as two equal "halves"; or twice, in
    # adjacent "pairs"
    repeats: str
    # Dimensions of a head that are rotated, from its first on
    width: int
    # True: dimensions 2i and 2i + 1 are rotated together; False: i and i + width / 2
    interleaved: bool

    def __call__(self, x: Tensor, positions: Tensor, memo: "AngleMemo | None" = None) -> Tensor:
        """Rotate by positions, without the base's scale, which `x` has already.

        Args:
            x: Queries or keys, (B, H, T, D).
            positions: Any integers, (B or 1, T).
            memo: Holds cos and sin of positions that several layers have in common.

        Returns:
            The rotated `x`, (B, H, T, D).
        """
        cos, sin = self.cos_sin(positions) if memo is None else memo.cos_sin(self, positions)
        rotated, rest = x[..., : self.width].float(), x[..., self.width :]
        if self.interleaved:
            x1, x2 = rotated[..., ::2], rotated[..., 1::2]
        else:
            x1, x2 = rotated.chunk(2, -1)
        parts = x1 * cos - x2 * sin, x2 * cos + x1 * sin
        if self.interleaved:
            out = torch.stack(parts, -1).flatten(-2)
            return torch.cat([out.to(x.dtype), rest], -1)
        return torch.cat([*(part.to(x.dtype) for part in parts), rest], -1)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of every angle once, (B or 1, 1, T, w / 2)."""
        like = torch.zeros(1, device=positions.device)
        parts = self.module(like, positions, *self.arguments)
        cos, sin = (self._distinct(part.float()) for part in parts)
        scale = (cos.square() + sin.square()).sqrt()
        return cos / scale, sin / scale

    def _distinct(self, x: Tensor) -> Tensor:
        """Select every angle once: (B, T, w) → (B, 1, T, w / 2)."""
        if self.repeats == "halves":
            x = x[..., : x.shape[-1] // 2]
        elif self.repeats == "pairs":
            x = x[..., ::2]
        return x[:, None]


class AngleMemo:
    """Cos and sin by positions, shared by the layers of a forward pass."""

    def __init__(self) -> None:
        self._known: dict[tuple[Rotation, bytes], tuple[Tensor, Tensor]] = {}

    def cos_sin(self, rotation: Rotation, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, (B or 1, 1, T, w / 2).

        They are not remembered where samples differ in positions, nor off the CPU.
        """
        if len(positions) > 1 or positions.device.type != "cpu":
            return rotation.cos_sin(positions)
        key = rotation, positions.numpy().tobytes()
        if key not in self._known:
            self._known[key] = rotation.cos_sin(positions)
        return self._known[key]


class BaseAttentions(NamedTuple):
    """Attention modules of a base, by layer, and how it encodes positions."""

    modules: list[nn.Module]
    # Queries, keys and values of one-token texts, (n, H or G, 1, ·), for sizes
    qkv: list[QKV]
    # Rotary embedding; None: the layer has none
    rotations: list[Rotation | None]
    # True: positions are learned and added to the embedding
    learned_positions: bool
    # Sliding window of the base's own, in tokens; None: the layer attends to all tokens
    sliding_windows: list[int | None]


@dataclass
class QKVRecorder:
    """Attention handler that runs the base's own attention and records its arguments."""

    modules: list[nn.Module] = field(default_factory=list)
    qkv: list[QKV] = field(default_factory=list)
    sliding_windows: list[int | None] = field(default_factory=list)

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """Record a call; a single token needs no mask."""
        self.modules.append(module)
        self.qkv.append((q, k, v))
        self.sliding_windows.append(options.get("sliding_window"))
        return attention_function(implementation, module)(module, q, k, v, None, **options)


@torch.no_grad()
def probe_attention(model: PreTrainedModel) -> BaseAttentions:
    """Find a base's attention modules and rotary embeddings.

    Args:
        model: A base whose attention calls `_dispatch` (`install_attention`).

    Raises:
        InputError: Its attention does not call `_dispatch` in every layer, or its rotation is
            unknown.
    """
    longest = context_length(model) or PROBE_POSITIONS[-1] + 1
    positions = torch.tensor(PROBE_POSITIONS, device=model.device).clamp(max=longest - 1)[:, None]
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        at_zero, embedded = _run_single_tokens(model, positions * 0)
        elsewhere, embedded_elsewhere = _run_single_tokens(model, positions)
    layers = decoder_layers(model)
    if len(at_zero.modules) != len(layers) or any(
        module not in set(layer.modules())
        for module, layer in zip(at_zero.modules, layers, strict=True)
    ):
        raise unsupported_attention(model)
    learned = not torch.equal(embedded, embedded_elsewhere)
    rotations: list[Rotation | None] = [None] * len(layers)
    if not learned:
        candidates = list(_candidate_rotations(model))
        for index, (qkv, rotated_qkv) in enumerate(zip(at_zero.qkv, elsewhere.qkv, strict=True)):
            rotations[index] = _match_rotation(model, qkv, rotated_qkv, positions, candidates)
    windows = at_zero.sliding_windows
    return BaseAttentions(at_zero.modules, at_zero.qkv, rotations, learned, windows)


def _run_single_tokens(model: PreTrainedModel, positions: Tensor) -> tuple[QKVRecorder, Tensor]:
    """Run one-token texts at `positions`, (n, 1); also return the first layer's input."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(len(positions), device=positions.device)[:, None] % vocabulary
    layer_inputs: list[Tensor] = []

    def record_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer_inputs.append(args[0] if args else kwargs["hidden_states"])

    recorder = QKVRecorder()
    hook = decoder_layers(model)[0].register_forward_pre_hook(record_input, with_kwargs=True)
    try:
        kwargs = attention_kwargs(recorder, tokens.device) | {CACHE: None, "use_cache": False}
        model.get_decoder()(input_ids=tokens, position_ids=positions, **kwargs)
    except TypeError as error:
        if HANDLER not in str(error):
            raise
        raise unsupported_attention(model) from None
    finally:
        hook.remove()
    return recorder, layer_inputs[0]


def _candidate_rotations(model: PreTrainedModel) -> Iterator[Rotation]:
    """Yield every way to interpret the base's rotary modules."""
    decoder = model.get_decoder()
    types = dict.fromkeys(getattr(model.config.get_text_config(), "layer_types", None) or ())
    for name, module in decoder.named_modules():
        if "rotary" not in name.rpartition(".")[2]:
            continue
        for arguments in ((), *((layer_type,) for layer_type in types)):
            try:
                like = torch.zeros(1, device=model.device)
                cos, sin = module(like, torch.zeros_like(like, dtype=torch.long)[None], *arguments)
            except (TypeError, AttributeError, KeyError, ValueError, IndexError):
                continue
            if cos.ndim != 3 or cos.shape != sin.shape or not cos.shape[-1]:
                continue
            for repeats in ("halves", "pairs", "once"):
                width = cos.shape[-1] * (2 if repeats == "once" else 1)
                for interleaved in (False, True):
                    yield Rotation(module, arguments, repeats, width, interleaved)


def _match_rotation(
    model: PreTrainedModel,
    qkv: QKV,
    rotated_qkv: QKV,
    positions: Tensor,
    candidates: list[Rotation],
) -> Rotation | None:
    """Return the rotation from position 0 to `positions`, (n, 1); InputError if none matches."""
    (q, k, _), (rotated_q, rotated_k, _) = qkv, rotated_qkv
    tolerance = max(1e-4, 8 * torch.finfo(q.dtype).eps)

    def error(rotate: Callable[[Tensor], Tensor]) -> float:
        pairs = ((rotate(q), rotated_q), (rotate(k), rotated_k))
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in pairs)

    if error(lambda x: x) < tolerance:
        return None
    for rotation in candidates:
        if (
            rotation.width <= q.shape[-1]
            and error(partial(rotation, positions=positions)) < tolerance
        ):
            return rotation
    raise InputError(
        f'method="window": {type(model).__name__} has a position encoding that infini does not '
        'support: use method="parallel"'
    )
