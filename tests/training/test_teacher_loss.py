"""Divergence from a teacher, in chunks, against its formula on all logits."""

import pytest
import torch

from infini.evaluation.losses import LOGIT_CHUNK
from infini.model.architectures import OutputHead
from infini.training.teacher_loss import teacher_divergence


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, 2.0)])
def test_teacher_divergence_matches_its_formula(scale: float, softcap: float | None) -> None:
    torch.manual_seed(0)
    own = torch.nn.Linear(6, 11, bias=True).requires_grad_(False)
    head = OutputHead(own.weight, own.bias, scale, softcap)
    hidden = torch.randn(2, LOGIT_CHUNK // 2 + 7, 6, requires_grad=True)
    teacher = torch.randn(*hidden.shape[:2], 11).log_softmax(-1)
    log_probs, ids = teacher.topk(4, -1)
    log_q, p = head(hidden).log_softmax(-1), log_probs.exp()
    rest_p, rest_q = 1 - p.sum(-1), 1 - log_q.exp().gather(-1, ids).sum(-1)
    expected = (p * (log_probs - log_q.gather(-1, ids))).sum(-1) + rest_p * (rest_p / rest_q).log()
    ours = teacher_divergence(hidden, head, log_probs, ids)
    torch.testing.assert_close(ours, expected)
    weights = torch.rand_like(expected)
    (ours_grad,) = torch.autograd.grad((ours * weights).sum(), hidden)
    (whole_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(ours_grad, whole_grad, rtol=1e-4, atol=1e-5)
    own_log_probs, own_ids = head(hidden).log_softmax(-1).detach().topk(4, -1)
    same = teacher_divergence(hidden, head, own_log_probs, own_ids)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-5)
