"""The memory of a stream by the kernels of `fla-core`, on a GPU where the extra `gpu` is installed.

Every test run checks the order of reads and writes, one with a GPU the kernels themselves.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import Update
from infini.memory.chunks import FLOOR

Fields = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of a Stream


def usable(memory: Tensor) -> bool:
    """Whether the kernels are to be used: the only place that decides."""
    return memory.is_cuda and memory.dtype == torch.float32 and find_spec("fla") is not None


def by_kernels(q: Tensor, stream: Fields, memory: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """`stream_memory`, see there, which lets a query read before its token is written.

    The kernels let it read after that: query t goes with token t - 1, the first with none. They
    have one memory a query head, so keys, values and memories are repeated for a group's.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    repeats = q.shape[1] // memory.shape[1]

    def per_query_head(x: Tensor) -> Tensor:  # (B, G, T, …) → (B, T, H, …)
        return x.to(memory.dtype).repeat_interleave(repeats, 1).transpose(1, 2).contiguous()

    k, v, beta = (per_query_head(x) for x in stream[:3])
    decay = None if stream[3] is None else per_query_head(stream[3]).clamp_min(FLOOR)
    q, start = q.to(memory.dtype), memory.repeat_interleave(repeats, 1)
    late = F.pad(q[:, :, 1:], (0, 0, 0, 1)).transpose(1, 2).contiguous()
    options = {"scale": 1.0, "initial_state": start, "output_final_state": True}
    if update == "delta":
        decay = torch.zeros_like(beta) if decay is None else decay
        reads, after = chunk_gated_delta_rule(late, k, v, g=decay, beta=beta, **options)
    else:
        reads, after = chunk_simple_gla(late, k, v * beta[..., None], g=decay, **options)
    reads = torch.cat([q[:, :, :1] @ start, reads.transpose(1, 2)[:, :, :-1]], 2)
    return reads.to(stream[1].dtype), after[:, ::repeats]
