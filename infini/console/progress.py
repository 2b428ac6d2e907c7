"""What a person sees while a stage runs: bars on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Sequence
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")


def on_terminal() -> bool:
    """Whether bars can be drawn."""
    return sys.stderr.isatty()


def progress(items: Sequence[T], title: str) -> "tqdm[T]":
    """Iterate under a bar that vanishes when done; off a terminal, one line says what runs."""
    if not on_terminal() and title:
        log.info("%s …", title)
    return tqdm(items, desc=title, leave=False, disable=not on_terminal() or not title)


def configure_logging() -> None:
    """Once, at a stage's entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "transformers" in sys.modules and not on_terminal():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
