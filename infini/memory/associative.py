"""A memory beside a base's attention: its own heads' keys and values, written as they leave.

M (D, V) a key-value head. k̂ and q̂ are the base's own, mapped a head and of length 1. Written, in
float32, by one of

    linear:       M ← M + β k̂ᵀ v
    delta:        M ← M + β k̂ᵀ (v - k̂ M)
    gated_delta:  M ← γ M, then as delta            (arXiv 2412.06464)

and read as g · (q̂ M) · output map. Strength β, gate g and decay γ are functions of the token's
own k (β, γ) and q (g), so nothing but k and v is kept of a token that is not written yet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.choices import MemoryMode, Update, WindowUpdate
from infini.memory.packing import swap_halves
from infini.memory.stream import Stream, stream_memory

KEPT = 6.0  # where the decay starts: γ = σ(6), half is left after 280 tokens


class Sigmoid(nn.Module):
    """A number between 0 and 1 a head and token, the same for all tokens at first."""

    def __init__(self, heads: int, width: int, start: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.full((heads,), start))

    def logits(self, x: Tensor) -> Tensor:
        """(B, H, T), of (B, H, T, D) float32, whatever their length."""
        x = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return torch.einsum("bhtd,hd->bht", x, self.weight.float()) + self.bias.float()[:, None]


class AssociativeMemory(nn.Module):
    """The parameters of a layer's memory, and its reads; untrained it adds nothing.

    heads, kv_heads: H and G; widths: of keys and of values, D and V.
    """

    use: MemoryMode = "own"  # see `infini.model.forward`

    def __init__(self, heads: int, kv_heads: int, widths: tuple[int, int], update: WindowUpdate):
        super().__init__()
        keys, values = widths
        self.update: Update = "linear" if update == "linear" else "delta"
        self.q_map = nn.Parameter(torch.eye(keys).repeat(heads, 1, 1))
        self.k_map = nn.Parameter(torch.eye(keys).repeat(kv_heads, 1, 1))
        self.out_map = nn.Parameter(torch.zeros(heads, values, values))
        self.strength = Sigmoid(kv_heads, keys, 0.0)
        self.gate = Sigmoid(heads, keys, 0.0)
        self.decay = Sigmoid(kv_heads, keys, KEPT) if update == "gated_delta" else None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor, written: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Query i reads `matrix`, (B, G, D, V), with the first i of k and v written to it.

        q: (B, H, T, D), k and v: (B, G, T, ·), all without positions; written: (B, T), False for
        tokens that are not to be; None: all are. Returns (B, H, T, V) in float32, and the matrix
        after all T.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            beta = self.strength.logits(k).sigmoid()  # (B, G, T)
            decay = None if self.decay is None else F.logsigmoid(self.decay.logits(k))
            if written is not None:
                real = written[:, None].to(k.device)  # (B, 1, T)
                beta = beta.where(real, 0)
                decay = None if decay is None else decay.where(real, 0)
            key = F.normalize(k @ self.k_map.float(), dim=-1)
            query = F.normalize(q @ self.q_map.float(), dim=-1)
            if self.use == "swapped":
                query = swap_halves(query)
            read, matrix = stream_memory(query, Stream(key, v, beta, decay), matrix, self.update)
            if self.use == "swapped":
                read = swap_halves(read)
            gate = self.gate.logits(q).sigmoid()[..., None]  # (B, H, T, 1)
            return gate * (read @ self.out_map.float()), matrix
