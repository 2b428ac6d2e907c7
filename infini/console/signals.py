"""Ctrl-C and SIGTERM: the first asks a training to stop and save, the second ends it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """A training has saved its state and stopped, as a signal asked it to."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal has arrived in this block."""
    requested = False

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        for kind, handler in before.items():
            signal.signal(kind, handler)

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, request) for kind in kinds}
    try:
        yield lambda: requested
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
