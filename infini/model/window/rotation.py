"""Where a base keeps its positions, found by asking it: no table of architectures.

A text of one token has nothing to attend to: whatever its position, all its hidden states are the
same, unless the position is in the embedding. So its queries and keys at several positions,
beside those at 0, show each layer's rotation alone.
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
from infini.model.window.attention import RUN, evaluating, instructions, own_function, unreachable

PLACES = (1, 3, 7, 20)  # positions asked for
QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rotation:
    """A layer's rotary embedding of queries and keys, computed in float32."""

    module: nn.Module  # the base's own: gives cos and sin of positions
    arguments: tuple[str, ...]  # its further ones: the layer's type, where it asks for that
    repeats: str  # how cos has every angle: "once", "halves" side by side, "pairs"
    width: int  # of a head, from its start on: what is turned
    interleaved: bool  # partners in the head are neighbours, else half the width apart

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x, (B, H, T, D), turned by positions, (B or 1, T), any integers; without the base's
        scale, which x has already."""
        like = torch.zeros(1, device=x.device)
        cos, sin = (part.float() for part in self.module(like, positions, *self.arguments))
        scale = (cos.square() + sin.square()).sqrt()
        cos, sin = (self._angles(part / scale) for part in (cos, sin))  # (B or 1, 1, T, w / 2)
        turning, rest = x[..., : self.width].float(), x[..., self.width :]
        if self.interleaved:
            first, second = turning[..., ::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, -1)
        turned = first * cos - second * sin, second * cos + first * sin
        out = torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)
        return torch.cat([out.to(x.dtype), rest], -1)

    def _angles(self, x: Tensor) -> Tensor:
        """(B, T, w) → (B, 1, T, w / 2): every angle once."""
        if self.repeats == "halves":
            x = x[..., : x.shape[-1] // 2]
        elif self.repeats == "pairs":
            x = x[..., ::2]
        return x[:, None]


class Positions(NamedTuple):
    """What a base does with positions."""

    modules: list[nn.Module]  # the attention modules, by layer
    calls: list[QKV]  # of one token, for sizes: (B, H or G, 1, ·)
    rotations: list[Rotation | None]  # by layer; None: no rotation there
    learned: bool  # they are in the embedding instead


@dataclass
class Recorder:
    """Runs the base's own attention, and keeps what it was called with."""

    modules: list[nn.Module] = field(default_factory=list)
    calls: list[QKV] = field(default_factory=list)

    def attend(
        self, module: nn.Module, qkv: QKV, implementation: str, options: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """A token alone needs no mask."""
        self.modules.append(module)
        self.calls.append(qkv)
        return own_function(implementation, module)(module, *qkv, None, **options)


@torch.no_grad()
def find_positions(model: PreTrainedModel) -> Positions:
    """Ask a base that calls us; InputError where it does not, or rotates in an unknown way."""
    longest = context_length(model) or PLACES[-1] + 1
    places = torch.tensor(PLACES, device=model.device).clamp(max=longest - 1)[:, None]
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        at_zero, embedded = _one_token(model, places * 0)
        elsewhere, moved = _one_token(model, places)
    layers = decoder_layers(model)
    inside = [set(layer.modules()) for layer in layers]
    if len(at_zero.modules) != len(layers) or any(
        module not in own for module, own in zip(at_zero.modules, inside, strict=True)
    ):
        raise unreachable(model)
    learned = not torch.equal(embedded, moved)
    rotations: list[Rotation | None] = [None] * len(layers)
    if not learned:
        known = list(_known_rotations(model))
        for index, calls in enumerate(zip(at_zero.calls, elsewhere.calls, strict=True)):
            rotations[index] = _rotation(model, calls, places, known)
    return Positions(at_zero.modules, at_zero.calls, rotations, learned)


def _one_token(model: PreTrainedModel, places: Tensor) -> tuple[Recorder, Tensor]:
    """What the attention of texts of one token is called with, and the first layer's input."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(len(places), device=places.device)[:, None] % vocabulary
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    run = Recorder()
    handle = decoder_layers(model)[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        options = instructions(run, tokens.device) | {CACHE: None, "use_cache": False}
        model.get_decoder()(input_ids=tokens, position_ids=places, **options)
    except TypeError as error:
        if RUN not in str(error):
            raise
        raise unreachable(model) from None
    finally:
        handle.remove()
    return run, seen[0]


def _known_rotations(model: PreTrainedModel) -> Iterator[Rotation]:
    """Every way in which the base's own rotary embeddings could be meant."""
    decoder = model.get_decoder()
    types = dict.fromkeys(getattr(model.config.get_text_config(), "layer_types", None) or ())
    for name, module in decoder.named_modules():
        if "rotary" not in name.rpartition(".")[2]:
            continue
        for arguments in ((), *((kind,) for kind in types)):
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


def _rotation(
    model: PreTrainedModel, calls: tuple[QKV, QKV], places: Tensor, known: list[Rotation]
) -> Rotation | None:
    """The one that leads from queries and keys at position 0 to those at `places`, (B, 1)."""
    (q, k, _), (q_there, k_there, _) = calls
    tolerance = max(1e-4, 8 * torch.finfo(q.dtype).eps)

    def error(turn: Callable[[Tensor], Tensor]) -> float:
        pairs = ((turn(q), q_there), (turn(k), k_there))
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in pairs)

    if error(lambda x: x) < tolerance:
        return None
    for rotation in known:
        if rotation.width <= q.shape[-1] and error(partial(rotation, positions=places)) < tolerance:
            return rotation
    raise InputError(
        f'method="window": {type(model).__name__} gives queries and keys their positions in a way '
        'that infini does not know: use method="parallel"'
    )
