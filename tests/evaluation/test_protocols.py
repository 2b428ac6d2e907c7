"""Protocols of params.yaml on prepared test text."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from infini.corpus.prepare import Piece, write_pieces
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.score import Score
from infini.model.architectures import CACHE, cache_of, output_head
from infini.model.base import load_tokenizer
from infini.model.forward import forward_documents, memory_mode
from infini.model.retrofit import retrofit, sliding_window
from infini.paths import DOCUMENTS, SAMPLES

L = 16
RECIPES: dict[str, Any] = {
    "short": {"samples": 3},
    "documents": 4,
    "double_shift": {"documents": 1},
    "full": {"context": 32, "stride": 8},
    "window": {"sizes": [4, 16], "sinks": 2},
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
    """Write more test text than any protocol scores; return the tokenizer's folder."""
    monkeypatch.chdir(tmp_path)
    write_pieces({"test": random_pieces([11, 8, 15, 9])}, SAMPLES)
    write_pieces({"test": random_pieces([48] * 5, of_a_text=2)}, DOCUMENTS)
    return base_folder


def text_of(prepared: Path, **changed: Any) -> HeldOutText:
    recipes = Evaluate(**(RECIPES | changed))
    return HeldOutText(recipes, L, load_tokenizer(str(prepared)))


def scores_of(text: HeldOutText, model: PreTrainedModel) -> dict[str, Score]:
    return {
        "short": text.short(model),
        "segmented": text.documents(model),
        "double_shift": text.double_shift(model),
        "full": text.full(model),
        "window": text.window(model, 16),
    }


def test_protocols_score_the_number_of_texts_in_params(
    model: PreTrainedModel, prepared: Path
) -> None:
    text = text_of(prepared)
    assert text.samples.tokens.shape == (3, L)  # padded to a segment, however short all are
    losses = text.tables(scores_of(text, model))
    pieces = losses.groupby("protocol")["piece"].unique().map(list).to_dict()
    four = [0, 1, 2, 3]
    assert pieces == {
        "short": [0, 1, 2], "segmented": four, "double_shift": [0], "full": four, "window": four
    }  # fmt: skip
    tokens = losses.groupby("protocol")["tokens"].sum().to_dict()
    assert tokens == {
        "short": 10 + 7 + 14, "segmented": 4 * 47, "double_shift": 3 * (L - 2), "full": 4 * 47,
        "window": 4 * 47,
    }  # fmt: skip


def test_tables_have_a_row_per_piece_segment_and_distance(
    model: PreTrainedModel, prepared: Path
) -> None:
    retrofit(model, "parallel", [0, 1], L, alpha=1.0)
    text = text_of(prepared)
    direct = {
        "documents": perplexity.score_documents(model, text.long_documents, L),
        "short": perplexity.score_documents(model, text.samples, L),
        "memory_off": perplexity.score_documents(model, text.long_documents, L, "off"),
        "memory_swapped": perplexity.score_documents(model, text.long_documents, L, "swapped"),
        "double_shift": perplexity.score_double_shift(model, text.long_documents.first(1), L),
    }
    losses = text.tables(
        {
            "documents": text.documents(model),
            "short": text.short(model),
            "memory_off": text.documents(model, "off"),
            "memory_swapped": text.documents(model, "swapped"),
            "double_shift": text.double_shift(model),
        }
    )
    assert losses.index.tolist() == list(range(len(losses)))
    assert list(losses["protocol"].unique()) == list(direct)
    assert not losses.duplicated(["protocol", "piece", "segment", "distance"]).any()
    for name, score in direct.items():
        found = losses[losses["protocol"] == name].drop(columns="protocol")
        pd.testing.assert_frame_equal(found.reset_index(drop=True), score.table(L))
    on, *others = (direct[n].nats for n in ("documents", "memory_off", "memory_swapped"))
    for other in others:
        torch.testing.assert_close(on[:, :L], other[:, :L])
        assert not torch.allclose(on[:, L:], other[:, L:])


def test_swapped_memory_pairs_documents_and_an_odd_one_with_the_first(
    model: PreTrainedModel, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches of two, 0 and 1 swap memories, then 2 reads that of 0."""
    retrofit(model, "parallel", [0], L, alpha=1.0)
    text = text_of(prepared).long_documents.first(3)
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 2 * text.tokens.shape[1])
    found = perplexity.score_documents(model, text, L, "swapped").nats
    for piece, other in ((0, 1), (1, 0), (2, 0)):
        with torch.no_grad(), memory_mode(model, "swapped"):
            hidden, _ = forward_documents(model, text.tokens[[piece, other]], L)
            log_p = output_head(model)(hidden[0, :-1]).log_softmax(-1)
        nats = -log_p.gather(1, text.tokens[piece, 1:, None])[:, 0]
        torch.testing.assert_close(found[piece, :-1], nats)


def test_swapped_memory_rejects_one_document(model: PreTrainedModel, prepared: Path) -> None:
    retrofit(model, "parallel", [0], L, alpha=1.0)
    with pytest.raises(InputError, match="documents must be ≥ 2"):
        perplexity.score_documents(model, text_of(prepared).long_documents.first(1), L, "swapped")


def test_full_uses_context_and_stride_of_params(model: PreTrainedModel, prepared: Path) -> None:
    for context, stride in ((32, 8), (64, 64)):
        text = text_of(prepared, full={"context": context, "stride": stride})
        expected = perplexity.score_full_attention(model, text.long_documents, context, stride)
        assert text.full(model).total == pytest.approx(expected.total)


@torch.no_grad()
def test_window_matches_reading_token_by_token(model: PreTrainedModel, prepared: Path) -> None:
    text = text_of(prepared)
    found = text.window(model, 5)
    with sliding_window(model, 5, 2):
        for row, nats in zip(text.long_documents.tokens, found.nats, strict=True):
            cache, slowly = None, []
            for token, following in pairwise(row):
                out = model(token[None, None], **{CACHE: cache}, use_cache=True)
                cache = cache_of(out)
                slowly.append(-out.logits[0, -1].double().log_softmax(-1)[following].float())
            torch.testing.assert_close(nats[:-1], torch.stack(slowly))


def test_protocols_beyond_the_context_are_rejected(model: PreTrainedModel, prepared: Path) -> None:
    text = text_of(prepared, full={"context": 65, "stride": 8}, window={"sizes": [63], "sinks": 2})
    message = r"^params.yaml: evaluate.full.context must be ≤ 64, the base's context, got 65$"
    with pytest.raises(InputError, match=message):
        text.full(model)
    with pytest.raises(InputError, match=r"evaluate.window.sizes must be ≤ 62, .* got 63$"):
        text.window(model, 63)
    assert text.documents(model).tokens


def test_more_texts_than_prepared_are_rejected(prepared: Path) -> None:
    with pytest.raises(InputError, match=r"samples/test.parquet: must have ≥ 5 pieces, got 4"):
        text_of(prepared, short={"samples": 5})
    with pytest.raises(InputError, match=r"documents/test.parquet: must have ≥ 6 pieces, got 5"):
        text_of(prepared, documents=6)
