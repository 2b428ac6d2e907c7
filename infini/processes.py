"""One process or many: data parallelism over documents, on Accelerate.

Every process holds the whole batch's description and computes its own share of it; losses
are sums over the share divided by counts over the whole batch, so that summed gradients
are those of one process. Started by any launcher that sets RANK and WORLD_SIZE.
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

Items = TypeVar("Items", bound="Sequence[Any] | Tensor")


@cache
def accelerator() -> Accelerator:
    """Joins the other processes, if there are any, when it is first asked for."""
    # or it would start as many runs of one process, where a launcher found no accelerator
    return Accelerator(cpu=not torch.accelerator.is_available())


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = accelerator().device
    return found if found.type != "cpu" else torch.device("cpu")  # not cpu:0, cpu:1, …


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    main: bool = accelerator().is_main_process
    return main


def count() -> int:
    """How many compute together."""
    number: int = accelerator().num_processes
    return number


def share(items: Items) -> Items:
    """What this process computes of a batch; may be empty."""
    joined = accelerator()
    mine: Items = items[joined.process_index :: joined.num_processes]  # type: ignore[assignment]
    return mine


def total(value: Tensor) -> Tensor:
    """The sum of all processes' tensors, on each of them; shape and type stay."""
    summed: Tensor = accelerator().reduce(value, "sum")
    return summed


def sum_gradients(parameters: Sequence[nn.Parameter], more: Tensor) -> Tensor:
    """Add up the processes' gradients, in place, and return the sum of `more`, (n,).

    One message for all of them. A parameter that has no gradient anywhere gets none.
    """
    if count() == 1:
        return more
    present = more.new_tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([more, present, *(g.flatten().to(more.dtype) for g in gradients)])
    sizes = [len(more), len(present), *(g.numel() for g in gradients)]
    summed, found, *parts = total(message).split(sizes)
    for parameter, gradient, part, anywhere in zip(
        parameters, gradients, parts, found.tolist(), strict=True
    ):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if anywhere else None
    return summed


def deal_out(layers: Iterable[nn.Module]) -> None:
    """Deal frozen layers out over the processes (FSDP2), in place, if the launcher asks for it.

    For a base too large for one device. What is trained stays whole on every process: it is
    small, and `sum_gradients` sums its gradients.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    # Here, because it takes long and most runs do not need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device().type, (count(),))
    for layer in layers:
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, mesh=mesh)


def leave() -> None:
    """Part from the others, at the end of a script: their threads must not outlive it."""
    if accelerator.cache_info().currsize:
        accelerator().end_training()


def compute_in(precision: Precision) -> None:
    """What `autocast` computes products in from now on.

    Where bfloat16 is slower than float32, as on CPUs without instructions for it, float32 it is,
    with a warning: figures differ by rounding.
    """
    global _precision
    _precision = precision
    if precision == "bfloat16" and device().type == "cpu":
        slower = _seconds(torch.bfloat16) / _seconds(torch.float32)
        if slower > 1:
            log.warning("bfloat16 takes %.0f times as long as float32 here: float32 it is", slower)
            _precision = "float32"


def _seconds(dtype: torch.dtype) -> float:
    """Of a product as a small model has them: the shortest of three."""
    x, times = torch.ones(256, 256, dtype=dtype), []
    for _ in range(3):
        began = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - began)
    return min(times)


def autocast() -> AbstractContextManager[None]:
    """The products' type within it: that of `compute_in`; weights and sums stay float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=_precision == "bfloat16")
