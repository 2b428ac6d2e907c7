"""The prepared test text, and every protocol over it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from infini.corpus.prepare import Piece, write
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.protocols import PROTOCOLS, HeldOutText
from infini.model.base import load_tokenizer
from infini.model.retrofit import retrofit
from infini.paths import DOCUMENTS, SAMPLES

L = 16
RECIPES: dict[str, dict[str, Any]] = {
    "short": {"samples": 3},
    "segmented": {"documents": 3},
    "memory_off": {"documents": 2},
    "double_shift": {"documents": 1},
    "sliding": {"documents": 4, "context": 32, "stride": 8},
    "passkey": {"lengths": [12], "depths": [0.5], "samples": 1},
}


def random_pieces(lengths: list[int], of_a_text: int = 1) -> list[Piece]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [
        Piece(str(i // of_a_text), 0, torch.randint(300, (n,), generator=generator).tolist(), 4 * n)
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def prepared(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More test text than any protocol asks for; where the tokenizer is."""
    monkeypatch.chdir(tmp_path)
    write({"test": random_pieces([11, 8, 15, 9])}, SAMPLES)
    write({"test": random_pieces([48] * 5, of_a_text=2)}, DOCUMENTS)
    return base_folder


def text_of(prepared: Path, **changed: dict[str, Any]) -> HeldOutText:
    recipes = Evaluate(**(RECIPES | changed))
    return HeldOutText(recipes, L, load_tokenizer(str(prepared)))


def test_every_protocol_scores_as_many_documents_as_its_recipe_says(
    model: PreTrainedModel, prepared: Path
) -> None:
    text = text_of(prepared)
    assert text.samples.tokens.shape == (3, L)  # padded to a segment, however short all are
    assert len(text.documents) == 4
    assert len(text.first(text.recipes.memory_off)) == 2
    losses = text.losses(model, *PROTOCOLS)
    pieces = losses.groupby("protocol")["piece"].unique().map(list).to_dict()
    assert pieces == {
        "short": [0, 1, 2],
        "segmented": [0, 1, 2],
        "memory_off": [0, 1],
        "double_shift": [0],
        "sliding": [0, 1, 2, 3],
    }
    tokens = losses.groupby("protocol")["tokens"].sum().to_dict()
    assert tokens == {
        "short": 10 + 7 + 14,
        "segmented": 3 * 47,
        "memory_off": 2 * 47,
        "double_shift": 3 * (L - 2),
        "sliding": 4 * 47,
    }


def test_losses_are_the_protocols_own_one_row_a_piece_segment_and_distance(
    model: PreTrainedModel, prepared: Path
) -> None:
    retrofit(model, "parallel", [0, 1], L, alpha=1.0)
    text = text_of(prepared)
    direct = {
        "segmented": perplexity.segmented(model, text.documents.first(3), L),
        "short": perplexity.segmented(model, text.samples, L),
        "memory_off": perplexity.segmented(model, text.documents.first(2), L, memory=False),
        "double_shift": perplexity.double_shift(model, text.documents.first(1), L),
    }
    losses = text.losses(model, *direct)
    assert losses.index.tolist() == list(range(len(losses)))
    assert list(losses["protocol"].unique()) == list(direct)
    assert not losses.duplicated(["protocol", "piece", "segment", "distance"]).any()
    for name, score in direct.items():
        found = losses[losses["protocol"] == name].drop(columns="protocol")
        pd.testing.assert_frame_equal(found.reset_index(drop=True), score.table(L))
    on, off = direct["segmented"].nats[:2], direct["memory_off"].nats
    torch.testing.assert_close(on[:, :L], off[:, :L])
    assert not torch.allclose(on[:, L:], off[:, L:])


def test_sliding_is_a_window_of_the_recipes_context_and_stride(
    model: PreTrainedModel, prepared: Path
) -> None:
    for context, stride in ((32, 8), (64, 64)):
        recipe = {"documents": 2, "context": context, "stride": stride}
        text = text_of(prepared, sliding=recipe)
        expected = perplexity.sliding(model, text.documents.first(2), context, stride)
        found = text.losses(model, "sliding")
        assert found["nats"].sum() == pytest.approx(expected.total)


def test_a_context_beyond_the_bases_is_refused_by_its_key(
    model: PreTrainedModel, prepared: Path
) -> None:
    text = text_of(prepared, sliding={"documents": 2, "context": 65, "stride": 8})
    message = r"^params.yaml: evaluate.sliding.context: the base reads 64 tokens at most, got 65$"
    with pytest.raises(InputError, match=message):
        text.losses(model, "sliding")
    assert len(text.losses(model, "segmented"))


def test_more_text_than_there_is_is_refused(prepared: Path) -> None:
    with pytest.raises(InputError, match=r"samples/test.parquet: 5 pieces asked for, it has 4"):
        text_of(prepared, short={"samples": 5})
    with pytest.raises(InputError, match=r"documents/test.parquet: 6 pieces asked for, it has 5"):
        text_of(prepared, double_shift={"documents": 6})
