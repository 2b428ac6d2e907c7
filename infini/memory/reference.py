"""Reference implementations: the equations as loops over tokens, for one head of one sample.

Every fast function of the package is tested against one of these, in values and, by autograd, in
gradients. Use float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import LocalKind, Update


def sigma(x: Tensor) -> Tensor:
    """Compute σ(x) = ELU(x) + 1."""
    return F.elu(x) + 1


def memory_loop(
    q: Tensor, k: Tensor, v: Tensor, segment_length: int, update: Update
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `compressive_memory`: arXiv 2404.07143, equations 3-5.

    Args:
        q: (T, D).
        k: (T, D).
        v: (T, V).
        segment_length: Tokens.
        update: Write rule.

    Returns:
        The reads, (T, V), M, (D, V), and z, (D,).
    """
    matrix, normalizer = q.new_zeros(q.shape[1], v.shape[1]), q.new_zeros(q.shape[1])
    reads = []
    for start in range(0, len(q), segment_length):
        segment = range(start, min(start + segment_length, len(q)))
        for t in segment:
            denominator = sigma(q[t]) @ normalizer
            is_written = denominator > 0
            read = sigma(q[t]) @ matrix / denominator if is_written else torch.zeros_like(v[t])
            reads.append(read)
        if len(segment) < segment_length:
            break  # incomplete: not written yet
        new_matrix, new_normalizer = matrix, normalizer
        for t in segment:
            denominator = sigma(k[t]) @ normalizer
            value = v[t]
            if update == "delta" and denominator > 0:
                value = value - sigma(k[t]) @ matrix / denominator
            new_matrix = new_matrix + torch.outer(sigma(k[t]), value)
            new_normalizer = new_normalizer + sigma(k[t])
        matrix, normalizer = new_matrix, new_normalizer
    return torch.stack(reads), matrix, normalizer


def recurrent_loop(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, delay: int, update: Update
) -> tuple[Tensor, Tensor]:
    """Compute `recurrent_memory`: arXiv 2406.06484 (delta), with decays arXiv 2412.06464.

    Args:
        q: (T, D).
        k: (T, D).
        v: (T, V).
        beta: Write strengths, (T,).
        decay: Log decays, (T,).
        delay: Tokens.
        update: Write rule.

    Returns:
        The reads, (T, V), and the memory as token T would read it, (D, V).
    """
    matrix = q.new_zeros(q.shape[1], v.shape[1])
    memories = [matrix] * delay  # entry t is what token t reads
    for t in range(len(q)):
        matrix = torch.exp(decay[t]) * matrix
        value = v[t] - k[t] @ matrix if update == "delta" else v[t]
        matrix = matrix + beta[t] * torch.outer(k[t], value)
        memories.append(matrix)
    reads = [q[t] @ memories[t] for t in range(len(q))]
    return torch.stack(reads), memories[len(q)]


def local_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_length: int,
    kind: LocalKind,
    slope: float,
    scale: float,
) -> Tensor:
    """Compute causal attention within segments, (T, V).

    Args:
        q: (T, D), with its rotation.
        k: (T, D), with its rotation.
        v: (T, V).
        segment_length: Tokens.
        kind: "softmax" or "linear".
        slope: ALiBi's, or 0.
        scale: Of the softmax's scores.
    """
    out = []
    for t in range(len(q)):
        start = t // segment_length * segment_length
        total, weights = q.new_zeros(()), q.new_zeros(v.shape[1])
        for j in range(start, t + 1):
            if kind == "softmax":
                weight = torch.exp(q[t] @ k[j] * scale - slope * (t - j))
            else:
                weight = sigma(q[t]) @ sigma(k[j]) * torch.exp(q.new_tensor(-slope * (t - j)))
            total, weights = total + weight, weights + weight * v[j]
        out.append(weights / total)
    return torch.stack(out)


def rotary_loop(x: Tensor, segment_length: int, theta: float = 10_000.0) -> Tensor:
    """Apply rotary positions that restart in every segment: (T, D), i paired with i + D/2."""
    half = x.shape[1] // 2
    out = []
    for t in range(len(x)):
        row = [x.new_zeros(())] * (2 * half)
        for i in range(half):
            angle = x.new_tensor(t % segment_length * theta ** (-2 * i / x.shape[1]))
            a, b = x[t, i], x[t, i + half]
            row[i] = a * torch.cos(angle) - b * torch.sin(angle)
            row[i + half] = b * torch.cos(angle) + a * torch.sin(angle)
        out.append(torch.stack(row))
    return torch.stack(out)
