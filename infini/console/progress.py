"""What a person sees while a stage runs: bars on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

LINE_SECONDS = 30.0  # between two lines off a terminal


def on_terminal() -> bool:
    """Whether bars can be drawn."""
    return sys.stderr.isatty()


def progress(items: Sequence[T], title: str) -> Iterable[T]:
    """Iterate under a bar that vanishes when done; off a terminal, lines say what runs."""
    if not title:
        return items
    return tqdm(items, desc=title, leave=False) if on_terminal() else _told(items, title)


def _told(items: Sequence[T], title: str) -> Iterator[T]:
    log.info("%s …", title)
    began = told = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - told > LINE_SECONDS:
            told = now
            log.info("%s: %d of %d%s", title, done, len(items), left(done, len(items), now - began))
        yield item


def left(done: int, total: int, seconds: float) -> str:
    """How long the rest takes if it goes on so: ", 02:30 left"."""
    return f", {tqdm.format_interval((total - done) * seconds / done)} left"


def configure_logging() -> None:
    """Once, at a stage's entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "transformers" in sys.modules and not on_terminal():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
