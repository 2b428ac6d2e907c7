"""The evaluation protocols: perplexity, always token-weighted, always on test text.

In documents every token but the first is scored: a segment's last position predicts
the next segment's first token. Every protocol takes any model, an untouched base too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini import engine
from infini.pieces import Batch, Pieces
from infini.progress import progress
from infini.segments import run_segments

CHUNK = 256  # tokens whose logits exist at a time
BATCH_TOKENS = 8192  # tokens of a forward pass
UNSCORED = -100  # the target of a position that is not scored


class _CrossEntropy(torch.autograd.Function):
    """Logits of a chunk are turned into its losses and its gradient at once, then overwritten.

    Beside the two matrix products that no way avoids, they are passed over twice: log-softmax,
    and its exponential for the gradient (softmax − one-hot) · W.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        wanted, kind = ctx.needs_input_grad[0], hidden.device.type
        if torch.is_autocast_enabled(kind):
            weight = weight.to(torch.get_autocast_dtype(kind))
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if wanted else hidden[:0]
        raw = weight.new_empty(CHUNK, len(weight))  # (c, V)
        normalized = torch.empty_like(raw, dtype=torch.float32)
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            x, index = hidden[part].to(weight.dtype), targets[part]
            scored = index != UNSCORED  # (c,)
            index = index.where(scored, 0)
            logits, log_p = raw[: len(x)], normalized[: len(x)]
            torch.mm(x, weight.t(), out=logits)
            if bias is not None:
                logits += bias
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_p)
            losses[part] = -log_p.gather(1, index[:, None])[:, 0] * scored
            if wanted:
                expected = torch.mm(log_p.exp_().to(weight.dtype), weight)  # (c, d)
                gradient[part] = (expected - weight[index]) * scored[:, None]
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None, None


def cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """Losses in nats through a frozen head, without ever holding more than a chunk of logits.

    hidden: (..., d), targets: (...) with UNSCORED where nothing is scored; (...), zero there.
    """
    losses = _CrossEntropy.apply(hidden.flatten(0, -2), head.weight, head.bias, targets.flatten())
    return losses.view(targets.shape)


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

    def of_all_processes(self) -> "Score":
        """The sum of their shares of the same text."""
        sums = torch.tensor([self.nats, float(self.tokens)], dtype=torch.float64)
        nats, tokens = engine.total(sums.to(engine.device())).tolist()
        return Score(nats, int(tokens), self.bytes)


def _share(model: PreTrainedModel, pieces: Pieces, title: str) -> Iterator[Batch]:
    """This process's batches, where the model is.

    As many for every process, which a sharded base asks for: one too many counts nothing.
    """
    batches = pieces.batches(BATCH_TOKENS)
    nothing = Batch(batches[0].tokens, torch.zeros_like(batches[0].mask))
    mine = engine.share(batches + [nothing] * (-len(batches) % engine.processes()))
    for batch in progress(mine, title):
        yield Batch(*(tensor.to(model.device) for tensor in batch))


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
    for batch in _share(model, pieces, title):
        hidden, _ = run_segments(model, batch.tokens, segment_length, memory=memory)
        targets = next_token(batch.tokens, batch.mask)
        score.nats += cross_entropy(hidden, head_of(model), targets).double().sum().item()
        score.tokens += int((targets != UNSCORED).sum())
    return score.of_all_processes()


@torch.no_grad()
def double_shift(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, title: str = ""
) -> Score:
    """The seed's loop, as an audit: each segment's token after next is scored.

    It fed `segment[:-1]` with labels `segment[1:]` to a model that shifts labels once more.
    """
    score = Score(bytes=int(pieces.bytes.sum()))
    fed = segment_length - 1
    for batch in _share(model, pieces, title):
        segments = batch.tokens.unflatten(1, (-1, segment_length))  # (B, T) → (B, N, L)
        hidden, _ = run_segments(model, segments[:, :, :-1].flatten(1), fed)
        hidden = hidden.unflatten(1, (-1, fed))[:, :, :-1]  # (B, N, L-2, d)
        real = batch.mask.unflatten(1, (-1, segment_length))[:, :, 2:]
        targets = segments[:, :, 2:].masked_fill(~real, UNSCORED)  # (B, N, L-2)
        score.nats += cross_entropy(hidden, head_of(model), targets).double().sum().item()
        score.tokens += int(real.sum())
    return score.of_all_processes()


@torch.no_grad()
def sliding(
    model: PreTrainedModel, pieces: Pieces, context: int, stride: int, title: str = ""
) -> Score:
    """Full attention over windows of `context` moving by `stride`; every token scored once.

    Each window scores the tokens that the one before did not reach (the strided recipe of
    Hugging Face's perplexity guide). For a model without a memory: the base's ceiling.
    """
    score = Score(bytes=int(pieces.bytes.sum()))
    for batch in _share(model, pieces, title):
        targets, length = next_token(batch.tokens, batch.mask), batch.tokens.shape[1]
        scored_to = 0
        for start in range(0, length, stride):
            end = min(start + context, length)
            hidden = model.get_decoder()(batch.tokens[:, start:end], use_cache=False)
            new = slice(scored_to - start, end - start)
            nats = cross_entropy(
                hidden.last_hidden_state[:, new], head_of(model), targets[:, scored_to:end]
            )
            score.nats += nats.double().sum().item()
            score.tokens += int((targets[:, scored_to:end] != UNSCORED).sum())
            scored_to = end
            if end == length:
                break
    return score.of_all_processes()


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The frozen layer that turns hidden states into logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head
