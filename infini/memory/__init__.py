"""The memory as functions of plain tensors, each tested against the loop in `reference`.

- `compressive`: Infini-attention's memory, by segments; `attention` has the whole layer.
- `window`: sliding-window attention with sinks; behind it `associative`, a matrix per head, and
  `retained`, key-value pairs that stay exact, which a policy of `eviction` selects.
- `recurrent`, `stream`: memories written token by token.
"""

from infini.memory.attention import InfiniAttention
from infini.memory.compressive import MemoryState, compressive_memory
from infini.memory.recurrent import RecurrentState, recurrent_memory
from infini.memory.stream import Stream, stream_memory

__all__ = [
    "InfiniAttention",
    "MemoryState",
    "RecurrentState",
    "Stream",
    "compressive_memory",
    "recurrent_memory",
    "stream_memory",
]
