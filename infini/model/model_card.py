"""Model card of a saved model: the base, the method, and of a release what was measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

CARD_FILE = "README.md"

METHOD_SENTENCES = {
    "window": "A sliding window with sinks, and a memory of constant size of what has left the "
    "window (the design of Artificial Hippocampus Networks, "
    "[arXiv 2510.07318](https://arxiv.org/abs/2510.07318)).",
    "parallel": "Infini-attention ([arXiv 2404.07143](https://arxiv.org/abs/2404.07143)) in "
    "parallel to layers of the base: a memory of constant size.",
    "replace": "Infini-attention ([arXiv 2404.07143](https://arxiv.org/abs/2404.07143)) in place "
    "of layers' attention: a memory of constant size.",
}

USAGE = """\
```python
import infini
from transformers import AutoTokenizer

model = infini.load("path/to/this/folder")  # loads its base from {base}
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")  # the base's
```

If the base is elsewhere: `infini.load("path/to/this/folder", base="path/to/the/base")`."""


class Release(NamedTuple):
    """Facts about a released model, which its files alone do not have."""

    # Licence of the added tensors, as the hub writes it, such as "mit"
    licence: str
    # Name of the base on the hub
    base: str
    # Description of the base
    about: str
    # Training data
    data: str
    # Results, in Markdown
    measured: str


def render_card(config: dict[str, Any], parameters: int, release: Release | None = None) -> str:
    """Return the model card of a saved model.

    Args:
        config: content of infini_config.json.
        parameters: number of added parameters.
        release: facts about a released model; None: it is not released.

    Returns:
        Markdown, with the hub's metadata in front.
    """
    base = release.base if release else config["base"]["model"]
    data = ModelCardData(
        base_model=base,
        base_model_relation="adapter",
        library_name="infini",
        license=release.licence if release else None,
        pipeline_tag="text-generation",
        tags=["infini-attention", "long-context"],
    )
    rows = _rows(config, release)
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {x} |" for name, x in rows.items())])
    sections = [
        f"# Infini-attention for {base}",
        f"{METHOD_SENTENCES[config['method']]} {parameters:,} parameters. This folder has them "
        "alone, not the base.",
        USAGE.format(base=config["base"]["model"]),
        table,
    ]
    if release:
        sections += ["## Results", release.measured.strip()]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(sections) + "\n"))


def _rows(config: dict[str, Any], release: Release | None) -> dict[str, str]:
    """Return the rows of the card's table."""
    base, method = config["base"], config["method"]
    about = f": {release.about}" if release else ""
    rows = {
        "base": f"`{base['model']}`{about}, revision {base['revision'] or 'not recorded'}, "
        f"fingerprint `{base['fingerprint']}`",
        "method": method,
        "layers": index_ranges(config["layers"]),
        "memory update": config["update"],
    }
    if method == "window":
        rows["window"] = f"the last {config['window']} tokens and the first {config['sinks']}"
        rows["retained pairs per key-value head"] = str(config["retained"] or "none")
        if config["retained"]:
            rows["retention policy"] = config["policy"]
    else:
        other = "" if config["segmented"] else ", other layers with full attention"
        rows["segments"] = f"{config['segment_length']} tokens{other}"
        rows["local attention"] = f"{config['local']}, positions {config['position']}"
    if method == "replace":
        rows["method"] = f"replace, initialised with {config['init']} weights"
    if release:
        rows["trained on"] = release.data
        rows["licence"] = (
            f"`{release.licence}`, for the tensors in this folder; "
            "the base has a licence of its own"
        )
    return rows


def index_ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges, such as "0–3, 7"; "none" if there are none."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    parts = (f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ranges)
    return ", ".join(parts) or "none"
