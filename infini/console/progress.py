"""Progress of a stage: bars on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LINE_SECONDS = 30.0  # between two lines where there is no terminal


def on_terminal() -> bool:
    """Return whether standard error is a terminal, where bars can be drawn."""
    return sys.stderr.isatty()


def progress(items: Sequence[_T], title: str) -> Iterable[_T]:
    """Iterate under a bar that vanishes at the end, or with log lines; silent without a title."""
    if not title:
        return items
    return tqdm(items, desc=title, leave=False) if on_terminal() else _with_lines(items, title)


def _with_lines(items: Sequence[_T], title: str) -> Iterator[_T]:
    log.info("%s …", title)
    start = last = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - last > LINE_SECONDS:
            last, left = now, time_left(done, len(items), now - start)
            log.info("%s: %d of %d%s", title, done, len(items), left)
        yield item


def time_left(done: int, total: int, seconds: float) -> str:
    """Return the remaining time at the present speed, as ", 02:30 left"."""
    return f", {tqdm.format_interval((total - done) * seconds / done)} left"


def configure_logging() -> None:
    """Log plain lines to standard error; called once, where a program starts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns of every retry; our error has the reason.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if "transformers" in sys.modules and not on_terminal():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
