"""Model cards: of a saved model, and of a release."""

from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedModel

import infini
from architectures import L
from infini.model.model_card import Release, index_ranges, render_card

SETTINGS = {
    "method": "window", "layers": [0, 1, 2, 5], "window": 64, "sinks": 4, "update": "gated_delta",
    "retained": 128, "policy": "decayed_attention",
    "base": {"model": "some/base", "revision": "abc", "fingerprint": "0123"},
}  # fmt: skip
RELEASE = Release("mit", "toy/base", "A small base", "16 documents", "| nats |\n|--|\n| 3.2 |")


def front_matter(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_render_card_has_config_and_release() -> None:
    card, released = render_card(SETTINGS, 1200), render_card(SETTINGS, 1200, RELEASE)
    assert front_matter(card)["base_model"] == "some/base"
    assert "license" not in front_matter(card)
    assert front_matter(released) == front_matter(card) | {
        "base_model": "toy/base",
        "license": "mit",
    }
    for text in (card, released):
        assert "1,200 parameters" in text
        assert "revision abc, fingerprint `0123`" in text
        assert "| layers | 0–2, 5 |" in text
        assert "| retained pairs per key-value head | 128 |" in text
        assert "| retention policy | decayed_attention |" in text
        assert "\n\n\n" not in text
        assert text.endswith("|\n")
        assert not text.endswith("\n\n")
    assert "Results" not in card
    assert "| base | `some/base`: A small base, revision" in released
    assert "| trained on | 16 documents |\n| licence | `mit`, for the tensors" in released
    assert "## Results\n\n| nats |" in released


def test_save_pretrained_writes_a_card(model: PreTrainedModel, tmp_path: Path) -> None:
    infini.retrofit(model, "replace", [1], L, init="random", local="linear", segmented=False)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| method | replace, initialised with random weights |" in card
    assert f"| segments | {L} tokens, other layers with full attention |" in card
    assert "| memory update | delta |\n" in card
    assert "| local attention | linear, positions none |\n" in card
    assert "retained" not in card


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [([], "none"), ([3], "3"), ([0, 1], "0–1"), ([0, 2, 3, 4, 9], "0, 2–4, 9")],
)
def test_index_ranges(numbers: list[int], shown: str) -> None:
    assert index_ranges(numbers) == shown
