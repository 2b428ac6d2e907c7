"""InfiniAttention: local attention within a segment, a compressive memory across segments.

arXiv 2404.07143, equations 3-6. One gate per head mixes the two; while the memory is empty, the
output is the local attention's alone.
"""

from dataclasses import dataclass
from itertools import count

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
from infini.memory.compressive import MemorySpec, MemoryState, attend
from infini.memory.local import (
    Rotary,
    RotaryEmbedding,
    alibi_slopes,
    apply_rotary,
    linear_attention,
    softmax_attention,
)
from infini.memory.packing import Packing

PIECE_TOKENS = 4096  # of a longer text at once: its projections stay in the processor's caches


@dataclass(frozen=True)
class HeadConfig:
    """Heads and projections of an `InfiniAttention`, as a base's attention has them.

    Raises:
        InputError: A size below 1, no finite number, or neither True nor False.
    """

    num_kv_heads: int | None = None
    """Key-value heads, each shared by num_heads / num_kv_heads query heads side by side; None:
    num_heads"""
    head_dim: int | None = None
    """Width of a head; None: hidden_size / num_heads"""
    qkv_bias: bool = True
    """Whether the projections of queries, keys and values have a bias"""
    out_bias: bool = True
    """Whether the output projection has a bias"""
    scale: float | None = None
    """Factor of the softmax's scores; None: 1/√head_dim"""
    rotary: Rotary | None = None
    """Rotary embedding of local queries and keys, for position="rope"; None: `RotaryEmbedding`"""

    def __post_init__(self) -> None:
        for name in ("num_kv_heads", "head_dim"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_bool("qkv_bias", self.qkv_bias)
        check_bool("out_bias", self.out_bias)
        if self.scale is not None:
            check_finite("scale", self.scale)


class InfiniAttention(nn.Module):
    """Self-attention within segments, with a compressive memory of constant size across them.

    arXiv 2404.07143, equations 3-6.

    Args:
        hidden_size: Width of input and output.
        num_heads: Query heads, each with a gate.
        segment_length: Tokens.
        update: Write rule of the memory, "delta" or "linear".
        local: Attention within a segment, "softmax" or "linear".
        position: Positions of the local attention, "none", "alibi" or "rope"; the memory has none.
        heads: Heads and projections, where they differ from the default.

    Raises:
        InputError: An unknown choice, a size below 1, num_heads that does not divide hidden_size,
            key-value heads that do not divide num_heads, or an odd head width with "rope".

    Examples:
        >>> attention = InfiniAttention(hidden_size=512, num_heads=8, segment_length=256)
        >>> out, state = attention(torch.randn(1, 1000, 512))
    """

    mode: MemoryMode = "own"
    """Whose memory is read: the sample's "own", another sample's ("swapped"), or none ("off")"""
    gate_parameters = ("beta",)
    """Names of the parameters that are trained at the gate learning rate."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        segment_length: int = 256,
        update: Update = "delta",
        local: LocalKind = "softmax",
        position: Position = "none",
        *,
        heads: HeadConfig | None = None,
    ):
        super().__init__()
        check_integer("hidden_size", hidden_size, 1)
        check_integer("num_heads", num_heads, 1)
        check_integer("segment_length", segment_length, 1)
        check_choice("update", update, Update)
        check_choice("local", local, LocalKind)
        check_choice("position", position, Position)
        heads = heads or HeadConfig()
        if heads.head_dim is None and hidden_size % num_heads:
            raise InputError(
                f"hidden_size must be a multiple of num_heads {num_heads}, got {hidden_size}"
            )
        num_kv_heads = heads.num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise InputError(
                f"num_heads must be a multiple of num_kv_heads {num_kv_heads}, got {num_heads}"
            )
        self.head_dim = heads.head_dim or hidden_size // num_heads
        if position == "rope" and heads.rotary is None and self.head_dim % 2:
            raise InputError(f'head_dim must be even with position="rope", got {self.head_dim}')
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
        """Attend, and write complete segments to the memory.

        Reading a document in any chunks, the state passed on, gives the same result as reading it
        whole.

        Args:
            hidden_states: (B, T, hidden_size), any T.
            state: State after the tokens before; None: there are none.
            attention_mask: (B, T), zero on padding, on either side, which is neither read from nor
                written and takes no position.

        Returns:
            The output, (B, T, hidden_size), and the state after the last token.

        Raises:
            InputError: Other shapes, or a state of other sizes.
        """
        width = self.q_proj.in_features
        if hidden_states.ndim != 3 or hidden_states.shape[2] != width:
            shape = tuple(hidden_states.shape)
            raise InputError(f"hidden_states must be (batch, tokens, {width}), got {shape}")
        packing = Packing.from_mask(hidden_states.shape[0], hidden_states.shape[1], attention_mask)
        out, state = self.advance(packing.pack(hidden_states, 1), packing.lengths, state)
        return packing.unpack(out, 1), state

    def advance(
        self,
        hidden_states: Tensor,
        lengths: Tensor,
        state: MemoryState | None,
        segment_length: int | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Attend as `forward` does, with padding at the end.

        Args:
            hidden_states: (B, T, hidden_size).
            lengths: Number of real tokens: (B,) int64, on the CPU.
            state: As in `forward`.
            segment_length: Instead of the layer's own, for a run that starts without a state.

        Returns:
            As in `forward`.
        """
        length = segment_length or self.segment_length
        piece = -(-PIECE_TOKENS // length) * length  # whole segments
        if hidden_states.shape[1] <= piece or (state is not None and bool(state.pending.any())):
            return self._advance_piece(hidden_states, lengths, state, length)
        outs = []
        for start, x in zip(count(0, piece), hidden_states.split(piece, 1), strict=False):
            own_lengths = (lengths - start).clamp(0, x.shape[1])
            out, state = self._advance_piece(x, own_lengths, state, length)
            outs.append(out)
        assert state is not None
        return torch.cat(outs, 1), state

    def _advance_piece(
        self,
        hidden_states: Tensor,
        lengths: Tensor,
        state: MemoryState | None,
        segment_length: int,
    ) -> tuple[Tensor, MemoryState]:
        """Advance by tokens whose queries, keys and values fit into the caches."""
        q = self.q_norm(self._by_head(self.q_proj(hidden_states))).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self._by_head(self.k_proj(hidden_states))).transpose(1, 2)  # (B, G, T, D)
        v = self._by_head(self.v_proj(hidden_states)).transpose(1, 2)  # (B, G, T, D)
        spec = MemorySpec(
            segment_length,
            self.update,
            self._local,
            torch.sigmoid(self.beta),
            self.mode,
        )
        out, state = attend(q, k, v, lengths, spec, state)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2)), state

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, H·D) → (B, T, H, D)."""
        return x.unflatten(-1, (-1, self.head_dim))

    def _local(self, q: Tensor, k: Tensor, v: Tensor, slots: Tensor | None) -> Tensor:
        """Attend within segments: (N, H, t, D), see `infini.memory.local`."""
        slopes = alibi_slopes(self.num_heads) if self.position == "alibi" else None
        if self.position == "rope":
            key_slots = torch.arange(k.shape[2], device=k.device)[None]
            like = k.to(self.beta.dtype)  # type of the angles: autocast rounds products alone
            k = apply_rotary(k, *self.rotary(like, key_slots))
            q = apply_rotary(q, *self.rotary(like, key_slots if slots is None else slots))
        if self.local == "linear":
            return linear_attention(q, k, v, slots, slopes)
        return softmax_attention(q, k, v, slots, self.scale, slopes)
