"""Kernels of flash-linear-attention (`fla-core`) for the streaming memory on a GPU.

They are used where the extra `gpu` is installed. Every test run checks the order of reads and
writes, one with a GPU the kernels themselves.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import Update
from infini.memory.chunks import MIN_LOG_DECAY

Fields = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of a Stream


def is_usable(memory: Tensor) -> bool:
    """Return whether the kernels are to be used for this memory; nothing else decides it."""
    return memory.is_cuda and memory.dtype == torch.float32 and find_spec("fla") is not None


def stream_memory_fla(
    q: Tensor, stream: Fields, memory: Tensor, update: Update
) -> tuple[Tensor, Tensor]:
    """Compute `stream_memory` by the kernels; arguments and results are the same.

    A query of ours reads before its token is written, the kernels read after that: query t goes
    with token t - 1, the first with none. They have one memory a query head, so that keys, values
    and memories are repeated for the heads of a group.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    repeats = q.shape[1] // memory.shape[1]

    def per_query_head(x: Tensor) -> Tensor:  # (B, G, T, …) → (B, T, H, …)
        return x.to(memory.dtype).repeat_interleave(repeats, 1).transpose(1, 2).contiguous()

    k, v, beta = (per_query_head(x) for x in stream[:3])
    decay = None if stream[3] is None else per_query_head(stream[3]).clamp_min(MIN_LOG_DECAY)
    q, initial_state = q.to(memory.dtype), memory.repeat_interleave(repeats, 1)
    shifted_q = F.pad(q[:, :, 1:], (0, 0, 0, 1)).transpose(1, 2).contiguous()
    options = {"scale": 1.0, "initial_state": initial_state, "output_final_state": True}
    if update == "delta":
        decay = torch.zeros_like(beta) if decay is None else decay
        reads, final_state = chunk_gated_delta_rule(shifted_q, k, v, g=decay, beta=beta, **options)
    else:
        v = v * beta[..., None]
        reads, final_state = chunk_simple_gla(shifted_q, k, v, g=decay, **options)
    reads = torch.cat([q[:, :, :1] @ initial_state, reads.transpose(1, 2)[:, :, :-1]], 2)
    return reads.to(stream[1].dtype), final_state[:, ::repeats]
