"""The evaluation protocols: perplexity, always token-weighted, always on test text.

In documents every token but the first is scored: a segment's last position predicts
the next segment's first token. Every protocol takes any model, an untouched base too.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from infini.pieces import Pieces
from infini.progress import progress
from infini.segments import run_segments

CHUNK = 1024  # tokens whose logits exist at a time
BATCH_TOKENS = 8192  # tokens of a forward pass
UNSCORED = -100  # the target of a position that is not scored


def cross_entropy(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Losses in nats without ever holding all logits: each chunk's are made again for its gradient.

    hidden: (..., d), targets: (...) with UNSCORED where nothing is scored; (...), zero there.
    """

    def chunk_loss(h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), t, reduction="none", ignore_index=UNSCORED)

    parts = []
    for h, t in zip(
        hidden.flatten(0, -2).split(CHUNK), targets.flatten().split(CHUNK), strict=True
    ):
        if torch.is_grad_enabled():
            parts.append(checkpoint(chunk_loss, h, t, use_reentrant=False))
        else:
            parts.append(chunk_loss(h, t))
    return torch.cat(parts).view(targets.shape)


@dataclass
class Score:
    """Summed losses of some text."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    @property
    def perplexity(self) -> float:
        """exp(nats a token)."""
        return math.exp(min(self.nats / self.tokens, 80.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable across vocabularies; bytes are those of the scored tokens."""
        return self.nats / math.log(2) / self.bytes

    def metrics(self) -> dict[str, float]:
        """What a metrics file holds of it."""
        return {"ppl": round(self.perplexity, 4), "bits_per_byte": round(self.bits_per_byte, 4)}


def next_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Targets of (B, T) tokens: the token after, UNSCORED at the end and on padding."""
    targets = F.pad(tokens[:, 1:], (0, 1), value=UNSCORED)
    return targets.masked_fill(~F.pad(mask[:, 1:], (0, 1)), UNSCORED)


@torch.no_grad()
def segmented(
    model: PreTrainedModel,
    pieces: Pieces,
    segment_length: int,
    memory: bool = True,
    title: str = "",
) -> Score:
    """Pieces read by segments, next token scored; memory=False keeps the memory empty.

    Short samples are pieces of one segment.
    """
    score = Score(bytes=int(pieces.bytes.sum()))
    for batch in progress(pieces.batches(BATCH_TOKENS), title):
        hidden, _ = run_segments(model, batch.tokens, segment_length, memory=memory)
        targets = next_token(batch.tokens, batch.mask)
        score.nats += cross_entropy(hidden, _head(model), targets).double().sum().item()
        score.tokens += int((targets != UNSCORED).sum())
    return score


@torch.no_grad()
def double_shift(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, title: str = ""
) -> Score:
    """The seed's loop, as an audit: each segment's token after next is scored.

    It fed `segment[:-1]` with labels `segment[1:]` to a model that shifts labels once more.
    """
    score = Score(bytes=int(pieces.bytes.sum()))
    fed = segment_length - 1
    for batch in progress(pieces.batches(BATCH_TOKENS), title):
        segments = batch.tokens.unflatten(1, (-1, segment_length))  # (B, T) → (B, N, L)
        hidden, _ = run_segments(model, segments[:, :, :-1].flatten(1), fed)
        hidden = hidden.unflatten(1, (-1, fed))[:, :, :-1]  # (B, N, L-2, d)
        targets = segments[:, :, 2:]  # (B, N, L-2)
        score.nats += cross_entropy(hidden, _head(model), targets).double().sum().item()
        score.tokens += targets.numel()
    return score


@torch.no_grad()
def sliding(
    model: PreTrainedModel, pieces: Pieces, context: int, stride: int, title: str = ""
) -> Score:
    """Full attention over windows of `context` moving by `stride`; every token scored once.

    Each window scores the tokens that the one before did not reach (the strided recipe of
    Hugging Face's perplexity guide). For a model without a memory: the base's ceiling.
    """
    score = Score(bytes=int(pieces.bytes.sum()))
    for batch in progress(pieces.batches(BATCH_TOKENS), title):
        targets, length = next_token(batch.tokens, batch.mask), batch.tokens.shape[1]
        scored_to = 0
        for start in range(0, length, stride):
            end = min(start + context, length)
            hidden = model.get_decoder()(batch.tokens[:, start:end], use_cache=False)
            new = slice(scored_to - start, end - start)
            nats = cross_entropy(
                hidden.last_hidden_state[:, new], _head(model), targets[:, scored_to:end]
            )
            score.nats += nats.double().sum().item()
            score.tokens += int((targets[:, scored_to:end] != UNSCORED).sum())
            scored_to = end
            if end == length:
                break
    return score


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return head
