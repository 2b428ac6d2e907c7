"""The mathematics of the memory, on plain tensors, each rule beside its slow reference."""

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
