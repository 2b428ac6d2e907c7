"""Associative memory behind a window: a matrix per key-value head, written as tokens leave.

M is (D, V). k̂ and q̂ are the base's own keys and queries, mapped per head and L2-normalised. A
token that leaves the window is written, in float32, by one of

    linear:       M ← M + β k̂ᵀ v                   (arXiv 2006.16236)
    delta:        M ← M + β k̂ᵀ (v - k̂ M)           (arXiv 2406.06484)
    gated_delta:  M ← γ M, then as delta            (arXiv 2412.06464)

and read as g · (q̂ M) · output map. Write strength β and decay γ are functions of the token's own
k, the read gate g of its q, so that only k and v are held of a token that is not written yet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.choices import MemoryMode, Update, WindowUpdate
from infini.memory.packing import swap_halves
from infini.memory.stream import Stream, stream_memory

DECAY_INIT = 6.0  # logit at the start: γ = σ(6), half is left after 280 tokens


class TokenGate(nn.Module):
    """Gate in (0, 1) per head and token, a linear function of the token; constant at the start.

    Args:
        heads: Heads, H.
        width: Width of a head, D.
        init: Logit at the start.
    """

    gate_parameters = ("bias",)  # trained at the gate learning rate

    def __init__(self, heads: int, width: int, init: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.full((heads,), init))

    def logits(self, x: Tensor) -> Tensor:
        """Compute the gate's logits: (B, H, T, D) float32 → (B, H, T).

        The length of a token's vector does not matter.
        """
        x = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return torch.einsum("bhtd,hd->bht", x, self.weight.float()) + self.bias.float()[:, None]


class AssociativeMemory(nn.Module):
    """Associative memory of a layer; untrained, its output is zero.

    Args:
        heads: Query heads, H.
        kv_heads: Key-value heads, G.
        widths: Key and value width, D and V.
        update: Write rule.
    """

    mode: MemoryMode = "own"
    """Whose memory is read: the sample's "own", another sample's ("swapped"), or none ("off")"""

    def __init__(self, heads: int, kv_heads: int, widths: tuple[int, int], update: WindowUpdate):
        super().__init__()
        key_width, value_width = widths
        self.update: Update = "linear" if update == "linear" else "delta"
        self.q_map = nn.Parameter(torch.eye(key_width).repeat(heads, 1, 1))
        self.k_map = nn.Parameter(torch.eye(key_width).repeat(kv_heads, 1, 1))
        self.out_map = nn.Parameter(torch.zeros(heads, value_width, value_width))
        self.beta = TokenGate(kv_heads, key_width, 0.0)
        self.gate = TokenGate(heads, key_width, 0.0)
        gated = update == "gated_delta"
        self.decay = TokenGate(kv_heads, key_width, DECAY_INIT) if gated else None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor, write_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read the memory with every query, then write a token: query i reads the first i writes.

        Args:
            q: Queries without positions, (B, H, T, D).
            k: Keys without positions of the tokens to write, (B, G, T, D).
            v: Their values, (B, G, T, V).
            matrix: Memory before the call, (B, G, D, V), float32.
            write_mask: (B, T), False for tokens that are not written; None: all are.

        Returns:
            The output, (B, H, T, V), float32, and the memory after all T writes.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            beta = self.beta.logits(k).sigmoid()  # (B, G, T)
            decay = None if self.decay is None else F.logsigmoid(self.decay.logits(k))
            mapped_k = F.normalize(k @ self.k_map.float(), dim=-1)
            mapped_q = F.normalize(q @ self.q_map.float(), dim=-1)
            writes = Stream(mapped_k, v, beta, decay)
            if write_mask is not None:
                writes = writes.masked(write_mask)
            if self.mode == "swapped":
                mapped_q = swap_halves(mapped_q)
            reads, matrix = stream_memory(mapped_q, writes, matrix, self.update)
            if self.mode == "swapped":
                reads = swap_halves(reads)
            gate = self.gate.logits(q).sigmoid()[..., None]  # (B, H, T, 1)
            return gate * (reads @ self.out_map.float()), matrix
