"""Targets of tokens, and cross-entropy through a frozen head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.model.architectures import OutputHead

BATCH_TOKENS = 8192  # of a forward pass without gradient
LOGIT_CHUNK = 256  # tokens whose logits exist at a time
UNSCORED = -100  # target of a position that is not scored


def next_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the targets of (B, T) tokens: the next token, UNSCORED at the end and on padding."""
    return _shifted(tokens, mask, 1)


def token_after_next(tokens: Tensor, mask: Tensor, segment_length: int) -> Tensor:
    """Return the research log's targets of (B, T) tokens: the token after next, by segment.

    The log fed `segment[:-1]` with labels `segment[1:]` to a model that shifts labels once more.
    """
    targets = _shifted(tokens, mask, 2)
    position = torch.arange(tokens.shape[1], device=tokens.device) % segment_length
    return targets.masked_fill(position >= segment_length - 2, UNSCORED)


def _shifted(tokens: Tensor, mask: Tensor, by: int) -> Tensor:
    targets = F.pad(tokens[:, by:], (0, by), value=UNSCORED)
    return targets.masked_fill(~F.pad(mask[:, by:], (0, by)), UNSCORED)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy and its gradient, computed together from one chunk of logits at a time.

    Beside two matrix products, logits are read twice: by log-softmax, and by its exponential for
    the gradient (softmax − one-hot) · W.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
        needs_grad, device, weight = ctx.needs_input_grad[0], hidden.device.type, head.weight
        if torch.is_autocast_enabled(device):
            weight = weight.to(torch.get_autocast_dtype(device))
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if needs_grad else hidden[:0]
        raw = weight.new_empty(LOGIT_CHUNK, len(weight))  # (c, V)
        normalized = torch.empty_like(raw, dtype=torch.float32)
        for start in range(0, len(hidden), LOGIT_CHUNK):
            part = slice(start, start + LOGIT_CHUNK)
            x, index = hidden[part].to(weight.dtype), targets[part]
            scored = index != UNSCORED  # (c,)
            index = index.where(scored, 0)[:, None]  # (c, 1)
            logits, log_p = raw[: len(x)], normalized[: len(x)]
            write_logits(logits, x, weight, head)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_p)
            losses[part] = -log_p.gather(1, index)[:, 0] * scored
            if needs_grad:
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


def write_logits(out: Tensor, x: Tensor, weight: Tensor, head: OutputHead) -> None:
    """Compute `head(x)`, (c, V), into `out`, with `weight` in place of the head's.

    Args:
        out: (c, V), overwritten.
        x: (c, d).
        weight: The head's weight, (V, d), in the type to compute in.
        head: Its bias, scale and softcap are applied.
    """
    torch.mm(x, weight.t(), out=out)
    if head.bias is not None:
        out += head.bias
    if head.scale != 1.0:
        out *= head.scale
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def cross_entropy(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    """Compute cross-entropy through a frozen head without holding all logits.

    Args:
        hidden: Last hidden states, (..., d).
        head: The output head.
        targets: Token ids, (...), UNSCORED where nothing is scored.

    Returns:
        Losses in nats, (...), zero where UNSCORED.
    """
    losses = _CrossEntropy.apply(hidden.flatten(0, -2), head, targets.flatten())
    return losses.view(targets.shape)
