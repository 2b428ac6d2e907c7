"""Segmented decoder: any length, in chunks, padded on either side."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

import infini
from architectures import BY_COLUMN, OWN_WINDOW, L, text, tiny
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of

Retrofitted = Callable[[str, str], PreTrainedModel]


@torch.no_grad()
def test_forward_in_chunks_equals_forward_of_the_whole(any_model: PreTrainedModel) -> None:
    tokens = text(2, 53)
    whole = any_model(tokens, use_cache=False, output_hidden_states=True)
    cache, parts, hidden = None, [], []
    for chunk in tokens.split([3, 20, 1, 1, 28], 1):
        out = any_model(chunk, **{CACHE: cache}, output_hidden_states=True)
        cache = cache_of(out)
        parts.append(out.logits)
        hidden.append(out.hidden_states[-1])
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=1e-4, atol=1e-5)
    last = whole.hidden_states[-1]
    torch.testing.assert_close(torch.cat(hidden, 1), last, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == 53


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_forward_ignores_padding_on_either_side(side: str, retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    lengths, width = [50, 21, 16], 50
    batch, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width)
    for row, n in enumerate(lengths):
        part = slice(width - n, None) if side == "left" else slice(n)
        batch[row, part], mask[row, part] = text(1, n)[0], 1
    for cache in (False, True):
        logits = model(batch, attention_mask=mask, use_cache=cache).logits
        for row, n in enumerate(lengths):
            alone = model(text(1, n)).logits[0]
            torch.testing.assert_close(logits[row, mask[row] == 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*OWN_WINDOW, *BY_COLUMN])
@torch.no_grad()
def test_cache_has_no_gaps_for_bases_that_count_columns(name: str) -> None:
    model = infini.retrofit(tiny(name), layers=[1], segment_length=8, alpha=0.5)
    rows, more = [text(1, 20), text(1, 33), text(1, 7)], text(3, 14)
    batch = torch.cat([F.pad(row, (33 - row.shape[1], 0)) for row in rows])
    mask = (batch != 0).long()
    out, logits = model(batch, attention_mask=mask, use_cache=True), []
    for token in more.split(1, 1):
        mask = F.pad(mask, (0, 1), value=1)
        out = model(token, attention_mask=mask, **{CACHE: cache_of(out)})
        logits.append(out.logits)
    for i, row in enumerate(rows):
        alone = model(torch.cat([row, more[i : i + 1]], 1), use_cache=False).logits[0, -14:]
        torch.testing.assert_close(torch.cat(logits, 1)[i], alone, rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_the_whole_document(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("llama", "parallel"), text(2, 3 * L)
    out = model(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(out.loss, expected)


def test_forward_rejects_invalid_calls(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    with pytest.raises(InputError, match="a DynamicCache cannot hold the memory"):
        model(text(1, 3), **{CACHE: DynamicCache()})
    with pytest.raises(InputError, match="needs use_cache"):
        model(text(1, 3), **{CACHE: cache_of(model(text(1, 3)))}, use_cache=False)
    with pytest.raises(
        InputError, match=r"attention_mask must be a tensor \(batch, past \+ 3\), got"
    ):
        model(text(1, 3), attention_mask=torch.ones(1, 2))
    with pytest.raises(InputError, match="attention_mask must have a token"):
        model(text(1, 3), attention_mask=torch.zeros(1, 3))
    with pytest.raises(InputError, match="at least one token"):
        model(text(1, 0))
    with pytest.raises(InputError, match="output_attentions"):
        model(text(1, 3), output_attentions=True)
