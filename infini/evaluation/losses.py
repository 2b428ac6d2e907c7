"""Losses of tokens: what each position is to predict, and cross-entropy through a frozen head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.model.architectures import Head

BATCH_TOKENS = 8192  # tokens of a forward pass that keeps nothing for a backward
CHUNK = 256  # tokens whose logits exist at a time
REST = 1e-6  # floor of what is left for the tokens that are not among the likeliest
UNSCORED = -100  # the target of a position that is not scored


def next_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Targets of (B, T) tokens: the token after, UNSCORED at the end and on padding."""
    return _shifted(tokens, mask, 1)


def token_after_next(tokens: Tensor, mask: Tensor, segment_length: int) -> Tensor:
    """The log's targets of (B, T) tokens: two further on, in the same segment of its loop.

    It fed `segment[:-1]` with labels `segment[1:]` to a model that shifts labels once more.
    """
    targets = _shifted(tokens, mask, 2)
    place = torch.arange(tokens.shape[1], device=tokens.device) % segment_length
    return targets.masked_fill(place >= segment_length - 2, UNSCORED)


def _shifted(tokens: Tensor, mask: Tensor, by: int) -> Tensor:
    targets = F.pad(tokens[:, by:], (0, by), value=UNSCORED)
    return targets.masked_fill(~F.pad(mask[:, by:], (0, by)), UNSCORED)


class _CrossEntropy(torch.autograd.Function):
    """Logits of a chunk are turned into its losses and its gradient at once, then overwritten.

    Beside the two matrix products that no way avoids, they are passed over twice: log-softmax,
    and its exponential for the gradient (softmax − one-hot) · W.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
        wanted, kind, weight = ctx.needs_input_grad[0], hidden.device.type, head.weight
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
            index = index.where(scored, 0)[:, None]  # (c, 1)
            logits, log_p = raw[: len(x)], normalized[: len(x)]
            _logits_into(logits, x, weight, head)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_p)
            losses[part] = -log_p.gather(1, index)[:, 0] * scored
            if wanted:
                p, own = log_p.exp_(), weight[index[:, 0]]  # (c, V), (c, d)
                if head.softcap is not None:
                    slope = 1 - (logits / head.softcap).square()  # tanh′
                    p, own = p.mul_(slope), own * slope.gather(1, index)
                expected = torch.mm(p.to(weight.dtype), weight)  # (c, d)
                gradient[part] = (expected - own) * scored[:, None]
        ctx.save_for_backward(gradient if head.scale == 1.0 else gradient * head.scale)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None


class _Distillation(torch.autograd.Function):
    """The divergence from a teacher's likeliest tokens, and all others as one, by chunks.

    With p the teacher's, q ours, r the rest of either: Σ p log(p / q) + p_r log(p_r / q_r). Its
    gradient by the logits is q - p on those tokens, q (1 - p_r / q_r) on all others.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, top: Tensor, ids: Tensor) -> Tensor:
        weight = head.weight
        if torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        raw = weight.new_empty(CHUNK, len(weight))  # (c, V)
        normalized = torch.empty_like(raw, dtype=torch.float32)
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            x, index = hidden[part].to(weight.dtype), ids[part].long()  # (c, k)
            logits, log_q = raw[: len(x)], normalized[: len(x)]
            _logits_into(logits, x, weight, head)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_q)
            log_p, own = top[part].float(), log_q.gather(1, index)
            p = log_p.exp()
            p_rest, q_rest = (
                (1 - y.sum(-1, keepdim=True)).clamp(min=REST) for y in (p, own.exp())
            )  # (c, 1)
            rest = p_rest * (p_rest.log() - q_rest.log())
            losses[part] = (p * (log_p - own)).sum(-1) + rest[:, 0]
            d_logits = log_q.exp_()
            on_top = d_logits.gather(1, index) - p
            d_logits.mul_(1 - p_rest / q_rest).scatter_(1, index, on_top)
            if head.softcap is not None:
                d_logits.mul_(1 - (logits / head.softcap).square())  # tanh′
            gradient[part] = torch.mm(d_logits.to(weight.dtype), weight)
        ctx.save_for_backward(gradient if head.scale == 1.0 else gradient * head.scale)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None, None


def _logits_into(out: Tensor, x: Tensor, weight: Tensor, head: Head) -> None:
    """`head(x)` with the weight as it is given, without another (c, V)."""
    torch.mm(x, weight.t(), out=out)
    if head.bias is not None:
        out += head.bias
    if head.scale != 1.0:
        out *= head.scale
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def cross_entropy(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Losses in nats through a frozen head, without ever holding more than a chunk of logits.

    hidden: (..., d), targets: (...) with UNSCORED where nothing is scored; (...), zero there.
    """
    losses = _CrossEntropy.apply(hidden.flatten(0, -2), head, targets.flatten())
    return losses.view(targets.shape)


def distillation(hidden: Tensor, head: Head, top: Tensor, ids: Tensor) -> Tensor:
    """Divergence in nats, (...), from a teacher's likeliest next tokens, through a frozen head.

    hidden: (..., d); top: their log-probabilities, (..., k), ids: which they are, (..., k). What
    the teacher gives all other tokens counts as one.
    """
    flat = hidden.flatten(0, -2), head, top.flatten(0, -2), ids.flatten(0, -2)
    losses: Tensor = _Distillation.apply(*flat)
    return losses.view(hidden.shape[:-1])
