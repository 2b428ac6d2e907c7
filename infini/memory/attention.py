"""InfiniAttention: local attention within a segment, a compressive memory across segments.

arXiv 2404.07143, equations 3-6. One gate a head mixes the two; while the memory is
empty the local output passes undiluted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infini.choices import (
    LocalKind,
    MemoryMode,
    Position,
    Update,
    check_bool,
    check_choice,
    check_finite,
    check_integer,
)
from infini.errors import InputError
from infini.memory.compressive import MemoryState, Rule, attend
from infini.memory.local import (
    Rotary,
    RotaryEmbedding,
    alibi_slopes,
    linear_attention,
    rotate,
    softmax_attention,
)
from infini.memory.packing import Packing


@dataclass(frozen=True)
class Heads:
    """What a base's attention may have otherwise; None: as in the comment.

    InputError for what is no size, no finite number, or neither True nor False.
    """

    # key-value heads, each shared by num_heads / num_kv_heads query heads side by side; num_heads
    num_kv_heads: int | None = None
    head_dim: int | None = None  # width of a head; hidden_size / num_heads
    qkv_bias: bool = True  # of the projections of queries, keys and values
    out_bias: bool = True  # of the output's projection
    scale: float | None = None  # of the softmax's scores; 1/√head_dim
    # for position="rope", of the local attention's queries and keys alone; a `RotaryEmbedding`
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        for name in ("num_kv_heads", "head_dim"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_bool("qkv_bias", self.qkv_bias)
        check_bool("out_bias", self.out_bias)
        if self.scale is not None:
            check_finite("scale", self.scale)


class InfiniAttention(nn.Module):
    """Self-attention whose keys and values outlive their segment in a constant-size memory.

    arXiv 2404.07143, equations 3-6. hidden_size: width of what comes in and goes out; num_heads:
    query heads, each with a gate; segment_length: tokens; update: how the memory is written,
    "delta" or "linear"; local: attention within a segment, "softmax" or "linear"; position: of
    that alone, "none", "alibi" or "rope"; heads: where a base's attention differs from the usual,
    `infini.memory.attention.Heads`. InputError: a choice that is none of these, a size below 1,
    num_heads does not divide hidden_size, the key-value heads do not divide num_heads, or an odd
    head width with "rope".
    """

    use: MemoryMode = "own"
    """Whose memory is read: the sample's "own", another's ("swapped"), or none ("off")."""
    gate_parameters = ("beta",)  # trained at the gate learning rate

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        segment_length: int = 256,
        update: Update = "delta",
        local: LocalKind = "softmax",
        position: Position = "none",
        *,
        heads: Heads | None = None,
    ):
        super().__init__()
        check_integer("hidden_size", hidden_size, 1)
        check_integer("num_heads", num_heads, 1)
        check_integer("segment_length", segment_length, 1)
        check_choice("update", update, Update)
        check_choice("local", local, LocalKind)
        check_choice("position", position, Position)
        heads = heads or Heads()
        if heads.head_dim is None and hidden_size % num_heads:
            raise InputError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        num_kv_heads = heads.num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise InputError(
                f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}"
            )
        self.head_dim = heads.head_dim or hidden_size // num_heads
        if position == "rope" and heads.rotary is None and self.head_dim % 2:
            raise InputError(f'head_dim: position="rope" needs an even one, got {self.head_dim}')
        self.num_heads = num_heads
        self.segment_length = segment_length
        self.update: Update = update
        self.local: LocalKind = local
        self.position: Position = position
        self.scale = heads.scale
        self.rotary = heads.rotary or RotaryEmbedding(self.head_dim)
        width, kv_width = num_heads * self.head_dim, num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden_size, width, bias=heads.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, kv_width, bias=heads.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, kv_width, bias=heads.qkv_bias)
        self.o_proj = nn.Linear(width, hidden_size, bias=heads.out_bias)
        self.q_norm: nn.Module = nn.Identity()  # per head, where the base has one (Qwen3)
        self.k_norm: nn.Module = nn.Identity()
        self.beta = nn.Parameter(torch.zeros(num_heads))  # gate = sigmoid(β)

    def forward(
        self,
        hidden_states: Tensor,
        state: MemoryState | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """hidden_states: (B, T, hidden_size), any T; attention_mask: (B, T), zero on padding.

        Padding, on either side, is neither read from nor written, and takes no position.
        state: after the tokens before; None: there are none. Returns (B, T, hidden_size) and the
        state after the last token; feeding a document in any chunks, the state passed on, gives
        what feeding it whole gives. InputError: other shapes, or a state of other sizes.
        """
        width = self.q_proj.in_features
        if hidden_states.ndim != 3 or hidden_states.shape[2] != width:
            shape = tuple(hidden_states.shape)
            raise InputError(f"hidden_states: (batch, tokens, {width}) is needed, got {shape}")
        packing = Packing.of(hidden_states.shape[0], hidden_states.shape[1], attention_mask)
        out, state = self.advance(packing.pack(hidden_states, 1), packing.lengths, state)
        return packing.unpack(out, 1), state

    def advance(
        self,
        hidden_states: Tensor,
        lengths: Tensor,
        state: MemoryState | None,
        segment_length: int | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """`forward` on samples of `lengths` tokens, (B,) int64 on the CPU, padding behind them.

        hidden_states: (B, T, hidden_size); state: as for `forward`; segment_length: instead of the
        layer's own, for a run that starts without a state.
        """
        q = self.q_norm(self._by_head(self.q_proj(hidden_states))).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self._by_head(self.k_proj(hidden_states))).transpose(1, 2)  # (B, G, T, D)
        v = self._by_head(self.v_proj(hidden_states)).transpose(1, 2)  # (B, G, T, D)
        rule = Rule(
            segment_length or self.segment_length,
            self.update,
            self._local,
            torch.sigmoid(self.beta),
            self.use,
        )
        out, state = attend(q, k, v, lengths, rule, state)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2)), state

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, H·D) → (B, T, H, D)."""
        return x.unflatten(-1, (-1, self.head_dim))

    def _local(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor | None) -> Tensor:
        """Attention within segments: (N, H, t, D), see `infini.memory.local`."""
        slopes = alibi_slopes(self.num_heads) if self.position == "alibi" else None
        if self.position == "rope":
            slots = torch.arange(k.shape[2], device=k.device)[None]
            like = k.to(self.beta.dtype)  # of angles: under autocast products alone are rounded
            k = rotate(k, *self.rotary(like, slots))
            q = rotate(q, *self.rotary(like, slots if at is None else at))
        if self.local == "linear":
            return linear_attention(q, k, v, at, slopes)
        return softmax_attention(q, k, v, at, self.scale, slopes)
