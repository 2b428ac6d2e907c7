"""The evaluation protocols: perplexity, always token-weighted, always on test text.

In documents every token but the first is scored: a segment's last position predicts
the next segment's first token. Every protocol takes any model, an untouched base too.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.choices import MemoryMode
from infini.console.progress import progress
from infini.corpus.pieces import Batch, Pieces
from infini.errors import InputError
from infini.evaluation.losses import (
    BATCH_TOKENS,
    UNSCORED,
    cross_entropy,
    next_token,
    token_after_next,
)
from infini.evaluation.score import Score
from infini.model.architectures import output_head
from infini.model.forward import forward_documents, memory_mode
from infini.model.segmented.segments import run_segments


def documents(
    model: PreTrainedModel,
    pieces: Pieces,
    segment_length: int,
    memory: MemoryMode = "own",
    title: str = "",
) -> Score:
    """Pieces read as the model reads documents, next token scored, by the memory of `memory`.

    An untouched base reads blind segments; short samples are pieces of one segment. InputError:
    one piece alone, where it is to be read with the memory of another.
    """
    swapped = memory == "swapped"
    if swapped and len(pieces) < 2:
        raise InputError(f"{title}: two documents are needed, one reads the other's memory")

    def losses(batch: Batch) -> tuple[Tensor, Tensor]:
        with memory_mode(model, memory):
            hidden, _ = forward_documents(model, batch.tokens, segment_length)
        targets = next_token(batch.tokens, batch.mask)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title, even=swapped)


def double_shift(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, title: str = ""
) -> Score:
    """The log's loop, as an audit: each segment's token after next is scored.

    It fed `segment[:-1]`, so that the memory never sees a segment's last token either.
    """

    def losses(batch: Batch) -> tuple[Tensor, Tensor]:
        length = batch.tokens.shape[1]
        tokens = F.pad(batch.tokens, (0, -length % segment_length))
        fed = tokens.unflatten(1, (-1, segment_length))[:, :, :-1]  # (B, N, L-1)
        hidden, _ = run_segments(model, fed.flatten(1), segment_length - 1)
        hidden = hidden.unflatten(1, (-1, segment_length - 1))  # (B, N, L-1, d)
        hidden = F.pad(hidden, (0, 0, 0, 1)).flatten(1, 2)[:, :length]  # (B, T, d)
        targets = token_after_next(batch.tokens, batch.mask, segment_length)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title)


def sliding(
    model: PreTrainedModel, pieces: Pieces, context: int, stride: int, title: str = ""
) -> Score:
    """Full attention over windows of `context` moving by `stride`; every token scored once.

    Each window scores the tokens that the one before did not reach (the strided recipe of
    Hugging Face's perplexity guide). For a model without a memory: the base's ceiling.
    """

    def losses(batch: Batch) -> tuple[Tensor, Tensor]:
        targets = next_token(batch.tokens, batch.mask)
        hidden = full_attention(model, batch.tokens, context, stride)
        return cross_entropy(hidden, output_head(model), targets), targets

    return _score(model, pieces, losses, title)


def full_attention(model: PreTrainedModel, tokens: Tensor, context: int, stride: int) -> Tensor:
    """Last hidden states, (B, T, d), by windows of `context` tokens that move by `stride`."""
    hidden: list[Tensor] = []
    length, done = tokens.shape[1], 0
    for start in range(0, length, stride):
        end = min(start + context, length)
        states = model.get_decoder()(tokens[:, start:end], use_cache=False).last_hidden_state
        # Of windows that overlap, the later predicts the token behind the earlier's last.
        to = end if end == length or stride == context else end - 1
        hidden.append(states[:, done - start : to - start])
        done = to
        if end == length:
            break
    return torch.cat(hidden, 1)


@torch.no_grad()
def _score(
    model: PreTrainedModel,
    pieces: Pieces,
    losses: Callable[[Batch], tuple[Tensor, Tensor]],
    title: str,
    even: bool = False,
) -> Score:
    """Every piece's losses: `losses` gives a batch's, (B, T), and its targets, (B, T).

    even: batches are; a piece is read again where one would have an odd number.
    """
    nats = torch.zeros(pieces.tokens.shape)
    scored = torch.zeros(pieces.tokens.shape, dtype=torch.bool)
    rows = list(torch.arange(len(pieces)).split(max(1, BATCH_TOKENS // nats.shape[1])))
    # As many batches for every process, which a sharded base asks for: one too many is dropped.
    surplus = -len(rows) % processes.count()
    mine = processes.share([*rows, *[rows[0][:0]] * surplus])
    for some in progress(mine, title):
        read = some if len(some) else rows[0]
        if even and len(read) % 2:
            read = torch.cat([read, (read[-1:] + 1) % len(pieces)])
        batch = Batch(pieces.tokens[read].to(model.device), pieces.mask[read].to(model.device))
        with processes.autocast():
            values, targets = losses(batch)
        if len(some):
            own = slice(len(some))
            nats[some], scored[some] = values[own].cpu(), (targets[own] != UNSCORED).cpu()
    if not nats.isfinite().all():
        raise InputError(
            f"{title or 'perplexity'}: a loss is not finite: the model's weights, the base's or "
            "the version's, have run away"
        )
    return Score(nats, scored, pieces.bytes, pieces.texts).of_all_processes()
