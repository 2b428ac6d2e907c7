"""Perplexity protocols: losses of every token, for any model, the untouched base included.

In documents every token but the first is scored: a segment's last position predicts the next
segment's first token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.choices import MemoryMode
from infini.console.progress import progress
from infini.corpus.pieces import PieceBatch, Pieces
from infini.errors import InputError
from infini.evaluation.losses import (
    BATCH_TOKENS,
    UNSCORED,
    cross_entropy,
    next_token,
    token_after_next,
)
from infini.evaluation.score import Score
from infini.model.architectures import CACHE, cache_of, output_head
from infini.model.forward import forward_documents, memory_mode
from infini.model.segmented.run import run_segments


def score_documents(
    model: PreTrainedModel,
    pieces: Pieces,
    segment_length: int,
    memory: MemoryMode = "own",
    title: str = "",
) -> Score:
    """Score pieces as the model reads documents.

    Args:
        model: A version, which reads by segments or by window; or the untouched base, which reads
            segments without memory.
        pieces: Text; a short sample is a piece of one segment.
        segment_length: Tokens per segment.
        memory: The model's own, kept empty ("off") or another piece's ("swapped").
        title: Name in progress bar and errors.

    Returns:
        The losses of the next token.

    Raises:
        InputError: If one piece alone should read the memory of another.
    """
    swapped = memory == "swapped"
    if swapped and len(pieces) < 2:
        raise InputError(f"{title}: documents must be ≥ 2, one reads the memory of another; got 1")

    def losses(batch: PieceBatch) -> tuple[Tensor, Tensor]:
        with memory_mode(model, memory):
            hidden, _ = forward_documents(model, batch.tokens, segment_length)
        targets = next_token(batch.tokens, batch.mask)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title, even=swapped)


def score_in_chunks(
    model: PreTrainedModel, pieces: Pieces, chunk_tokens: int, chunk_title: str = ""
) -> Score:
    """Score pieces of any length as a retrofitted model reads them, in the memory of a chunk.

    Args:
        model: A retrofitted model, whose cache goes from chunk to chunk.
        pieces: Text.
        chunk_tokens: Tokens per forward pass.
        chunk_title: Name in the progress bar over a batch's chunks.

    Returns:
        The losses of the next token, those of `score_documents`.
    """

    def losses(batch: PieceBatch) -> tuple[Tensor, Tensor]:
        targets, decoder = next_token(batch.tokens, batch.mask), model.get_decoder()
        chunks = [x.split(chunk_tokens, dim=1) for x in (batch.tokens, targets)]
        nats, cache = [], None
        for tokens, scored in progress(list(zip(*chunks, strict=True)), chunk_title):
            out = decoder(tokens, use_cache=True, **{CACHE: cache})
            cache = cache_of(out)
            nats.append(cross_entropy(out.last_hidden_state, output_head(model), scored))
        return torch.cat(nats, 1), targets

    return _score(model, pieces, losses, title="")


def score_double_shift(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, title: str = ""
) -> Score:
    """Score the token after next, as the research log's loop did.

    It fed `segment[:-1]`, so the memory does not see a segment's last token either.
    """

    def losses(batch: PieceBatch) -> tuple[Tensor, Tensor]:
        length = batch.tokens.shape[1]
        tokens = F.pad(batch.tokens, (0, -length % segment_length))
        fed = tokens.unflatten(1, (-1, segment_length))[:, :, :-1]  # (B, N, L-1)
        hidden, _ = run_segments(model, fed.flatten(1), segment_length - 1)
        hidden = hidden.unflatten(1, (-1, segment_length - 1))  # (B, N, L-1, d)
        hidden = F.pad(hidden, (0, 0, 0, 1)).flatten(1, 2)[:, :length]  # (B, T, d)
        targets = token_after_next(batch.tokens, batch.mask, segment_length)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title)


def score_full_attention(
    model: PreTrainedModel,
    pieces: Pieces,
    context: int,
    stride: int,
    title: str = "",
    window_title: str = "",
) -> Score:
    """Score a model without memory by full attention, every token once.

    Each window of `context` tokens scores those that the one before, `stride` tokens earlier, did
    not reach (the strided recipe of Hugging Face's perplexity guide).
    """

    def losses(batch: PieceBatch) -> tuple[Tensor, Tensor]:
        targets = next_token(batch.tokens, batch.mask)
        hidden = full_attention_states(model, batch.tokens, context, stride, window_title)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title)


def full_attention_states(
    model: PreTrainedModel, tokens: Tensor, context: int, stride: int, title: str = ""
) -> Tensor:
    """Compute last hidden states by full attention over overlapping windows.

    Args:
        model: A model without memory.
        tokens: (B, T).
        context: Tokens per window.
        stride: Tokens from a window's start to the next one's.
        title: Name in the progress bar over windows.

    Returns:
        (B, T, d); each token's state is of the first window that predicts what follows it.
    """
    hidden: list[Tensor] = []
    length, done = tokens.shape[1], 0
    starts = range(0, max(length - context, 0) + stride, stride)
    for start in progress(starts, title):
        end = min(start + context, length)
        states = model.get_decoder()(tokens[:, start:end], use_cache=False).last_hidden_state
        # The token after a window's last is predicted by the next one, if they overlap.
        to = end if end == length or stride == context else end - 1
        hidden.append(states[:, done - start : to - start])
        done = to
    return torch.cat(hidden, 1)


@torch.no_grad()
def _score(
    model: PreTrainedModel,
    pieces: Pieces,
    losses: Callable[[PieceBatch], tuple[Tensor, Tensor]],
    title: str,
    even: bool = False,
) -> Score:
    """Score all pieces; `losses` returns a batch's losses and targets, each (B, T).

    even: A batch of an odd number of pieces reads another piece too.
    """
    nats = torch.zeros(pieces.tokens.shape)
    scored = torch.zeros(pieces.tokens.shape, dtype=torch.bool)
    rows = list(torch.arange(len(pieces)).split(max(1, BATCH_TOKENS // nats.shape[1])))
    # A sharded base needs equally many batches in every process: surplus ones are dropped.
    surplus = -len(rows) % processes.num_processes()
    mine = processes.local_share([*rows, *[rows[0][:0]] * surplus])
    for scored_rows in progress(mine, title):
        indices = scored_rows if len(scored_rows) else rows[0]
        if even and len(indices) % 2:
            indices = torch.cat([indices, (indices[-1:] + 1) % len(pieces)])
        batch = PieceBatch(
            pieces.tokens[indices].to(model.device), pieces.mask[indices].to(model.device)
        )
        with processes.autocast():
            values, targets = losses(batch)
        if count := len(scored_rows):
            nats[scored_rows] = values[:count].cpu()
            scored[scored_rows] = (targets[:count] != UNSCORED).cpu()
    if not nats.isfinite().all():
        raise InputError(
            f"{title or 'perplexity'}: a loss is not finite: the model's weights, the base's or "
            "the version's, have diverged"
        )
    return Score(nats, scored, pieces.bytes, pieces.texts).of_all_processes()
