"""One process or many: data parallelism over documents with Accelerate.

Every process has the description of the whole batch and computes its share of it. Losses are sums
over the share, divided by counts over the whole batch, so that summed gradients equal those of one
process. Any launcher that sets RANK and WORLD_SIZE can start the processes.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from infini.choices import Precision

log = logging.getLogger(__name__)

_precision: Precision = "float32"

_Items = TypeVar("_Items", bound="Sequence[Any] | Tensor")


@cache
def accelerator() -> Accelerator:
    """Return the Accelerator; the first call joins the other processes, if there are any."""
    # Without cpu=True and an accelerator, each process would be a run of its own.
    return Accelerator(cpu=not torch.accelerator.is_available())


def device() -> torch.device:
    """Return the device that this process computes on."""
    own: torch.device = accelerator().device
    return own if own.type != "cpu" else torch.device("cpu")  # without an index


def is_main() -> bool:
    """Return whether this process writes files and logs."""
    main: bool = accelerator().is_main_process
    return main


def num_processes() -> int:
    """Return how many processes compute together."""
    number: int = accelerator().num_processes
    return number


def local_share(items: _Items) -> _Items:
    """Return this process's share of a batch; it may be empty."""
    joined = accelerator()
    share: _Items = items[joined.process_index :: joined.num_processes]  # type: ignore[assignment]
    return share


def all_reduce(value: Tensor) -> Tensor:
    """Return the sum of all processes' tensors on each of them; shape and type stay."""
    summed: Tensor = accelerator().reduce(value, "sum")
    return summed


def sum_gradients(parameters: Sequence[nn.Parameter], more: Tensor) -> Tensor:
    """Sum gradients over the processes, in place, in one message.

    Args:
        parameters: trained parameters; one without a gradient on every process stays without.
        more: values to sum as well, (n,).

    Returns:
        The sums of `more`, (n,).
    """
    if num_processes() == 1:
        return more
    present = more.new_tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([more, present, *(g.flatten().to(more.dtype) for g in gradients)])
    sizes = [len(more), len(present), *(g.numel() for g in gradients)]
    summed, present_anywhere, *parts = all_reduce(message).split(sizes)
    for parameter, gradient, part, anywhere in zip(
        parameters, gradients, parts, present_anywhere.tolist(), strict=True
    ):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if anywhere else None
    return summed


def shard_layers(layers: Iterable[nn.Module]) -> None:
    """Shard frozen layers over the processes (FSDP2), in place, if the launcher asks for it.

    It is for a base too large for one device. Trained parameters are small and stay whole on every
    process; `sum_gradients` sums their gradients.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    # slow to import, and seldom needed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device().type, (num_processes(),))
    for layer in layers:
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, mesh=mesh)


def end_processes() -> None:
    """Leave the process group at the end of a script; its threads must not outlive it."""
    if accelerator.cache_info().currsize:
        accelerator().end_training()


def set_precision(precision: Precision) -> None:
    """Set the type in which `autocast` computes products.

    On a CPU where bfloat16 is slower than float32, float32 is used, with a warning.
    """
    global _precision
    _precision = precision
    if precision == "bfloat16" and device().type == "cpu":
        slower = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        if slower > 1:
            log.warning("bfloat16 is %.0f times slower than float32 here: float32 is used", slower)
            _precision = "float32"


def precision() -> Precision:
    """Return the type in which `autocast` computes products."""
    return _precision


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the time of a matrix product of a small model's size, the shortest of three."""
    x, times = torch.ones(256, 256, dtype=dtype), []
    for _ in range(3):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return min(times)


def autocast() -> AbstractContextManager[None]:
    """Return a context whose products have the type of `set_precision`; weights and sums stay."""
    return torch.autocast(device().type, torch.bfloat16, enabled=_precision == "bfloat16")
