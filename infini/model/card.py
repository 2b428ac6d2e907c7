"""The model card beside a saved model's tensors: what it is, of its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

CARD = "README.md"


class Release(NamedTuple):
    """What a card says besides, where it is known."""

    licence: str  # of our tensors, as the hub writes it, say "mit"
    base: str  # the base's name on the hub
    about: str  # the base in words
    data: str  # what it was trained on
    measured: str  # the results, in Markdown


def render(settings: dict[str, Any], parameters: int, release: Release | None = None) -> str:
    """Markdown with the hub's front matter; settings: those of infini_config.json."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["ranges"] = ranges
    template = environment.get_template("model_card.md.j2")
    return template.render(settings=settings, parameters=parameters, release=release)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, "0–3, 7"; "none" for none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return ", ".join(parts) or "none"
