"""Ctrl-C and SIGTERM ask a training to stop at the next safe place; asked twice, at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """A training was asked to stop, and saved where it is."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it the signals only set what the yielded function returns."""
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
