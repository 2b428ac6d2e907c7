"""Distillation from recorded log-probabilities: the base with full attention is the teacher."""

from typing import Any

import torch
from torch import Tensor

from infini.evaluation.losses import LOGIT_CHUNK, write_logits
from infini.model.architectures import OutputHead

REST_FLOOR = 1e-6  # of the probability of all tokens that are not the teacher's likeliest


class _TeacherDivergence(torch.autograd.Function):
    """Divergence from a teacher and its gradient, computed from one chunk of logits at a time.

    With p the teacher's probabilities, q the student's, r the sum over all other tokens:
    Σ p log(p / q) + p_r log(p_r / q_r). Its gradient by the logits is q − p on the teacher's
    tokens, q (1 − p_r / q_r) on all others.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: OutputHead, log_probs: Tensor, ids: Tensor
    ) -> Tensor:
        weight = head.weight
        if torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        raw = weight.new_empty(LOGIT_CHUNK, len(weight))  # (c, V)
        normalized = torch.empty_like(raw, dtype=torch.float32)
        for start in range(0, len(hidden), LOGIT_CHUNK):
            part = slice(start, start + LOGIT_CHUNK)
            x, index = hidden[part].to(weight.dtype), ids[part].long()  # (c, k)
            logits, log_q = raw[: len(x)], normalized[: len(x)]
            write_logits(logits, x, weight, head)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_q)
            log_p, own = log_probs[part].float(), log_q.gather(1, index)
            p = log_p.exp()
            p_rest, q_rest = (
                (1 - y.sum(-1, keepdim=True)).clamp(min=REST_FLOOR) for y in (p, own.exp())
            )  # (c, 1)
            rest = p_rest * (p_rest.log() - q_rest.log())
            losses[part] = (p * (log_p - own)).sum(-1) + rest[:, 0]
            d_logits = log_q.exp_()
            on_ids = d_logits.gather(1, index) - p
            d_logits.mul_(1 - p_rest / q_rest).scatter_(1, index, on_ids)
            if head.softcap is not None:
                d_logits.mul_(1 - (logits / head.softcap).square())  # tanh′
            gradient[part] = torch.mm(d_logits.to(weight.dtype), weight)
        ctx.save_for_backward(gradient if head.scale == 1.0 else gradient * head.scale)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None].to(gradient.dtype), None, None, None


def teacher_divergence(hidden: Tensor, head: OutputHead, log_probs: Tensor, ids: Tensor) -> Tensor:
    """Compute the divergence from a teacher's likeliest next tokens through a frozen head.

    All other tokens count as one.

    Args:
        hidden: The student's last hidden states, (..., d).
        head: The output head.
        log_probs: The teacher's log-probabilities of its likeliest tokens, (..., k).
        ids: Those tokens, (..., k).

    Returns:
        Divergence in nats, (...).
    """
    flat = hidden.flatten(0, -2), head, log_probs.flatten(0, -2), ids.flatten(0, -2)
    losses: Tensor = _TeacherDivergence.apply(*flat)
    return losses.view(hidden.shape[:-1])
