"""Seconds and memory of a decoder's forward passes, without what is computed around them."""

import time
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from infini.evaluation.peak_memory import peak_memory, reset_peak_memory

_UNKNOWN = (OSError, AttributeError, RuntimeError)  # another system, C library or accelerator


class PrefillMeter:
    """Measures the passes of a decoder inside a `with` block.

    Args:
        decoder: The decoder, a model's `get_decoder()`; its input is tokens, (B, T).
        device: Its device.
    """

    tokens: int = 0
    """Tokens read"""
    seconds: float = 0.0
    """Duration of all passes"""
    peak_mib: float = 0.0
    """Most memory held in a pass beyond what was held before the block, in MiB: of the device, or
    of the process (Linux); NaN where it cannot be measured"""

    def __init__(self, decoder: nn.Module, device: torch.device):
        self.decoder, self.device = decoder, device
        self._before, self._started = 0.0, 0.0
        self._hooks: list[Any] = []

    @property
    def tokens_per_second(self) -> float:
        """Tokens read per second."""
        return self.tokens / self.seconds

    def __enter__(self) -> Self:
        self._hooks = [
            self.decoder.register_forward_pre_hook(self._start_pass, with_kwargs=True),
            self.decoder.register_forward_hook(self._end_pass),
        ]
        self._before = self._reset_peak(collect=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start_pass(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens: Tensor = args[0] if args else options["input_ids"]
        self.tokens += tokens.numel()
        self._reset_peak()
        self._synchronize()
        self._started = time.perf_counter()

    def _end_pass(self, *_: Any) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self._started
        self.peak_mib = max(self._peak() - self._before, self.peak_mib)  # NaN stays NaN

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _reset_peak(self, collect: bool = False) -> float:
        """Begin a new peak; return the memory that is held now, in MiB."""
        try:
            if self.device.type == "cpu":
                return reset_peak_memory(collect)
            torch.accelerator.reset_peak_memory_stats(self.device)
            return torch.accelerator.memory_allocated(self.device) / 2**20
        except _UNKNOWN:
            return float("nan")

    def _peak(self) -> float:
        try:
            if self.device.type == "cpu":
                return peak_memory()
            return torch.accelerator.max_memory_allocated(self.device) / 2**20
        except _UNKNOWN:
            return float("nan")
