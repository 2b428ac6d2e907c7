"""Teacher log-probabilities: the base's likeliest next tokens with full attention, recorded once.

A version with `objective: distillation` is trained to predict the same without that attention. The
20 likeliest hold nearly all that a student can learn of a distribution (Cartridges, arXiv
2506.06266), at 120 bytes per token.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.console.progress import progress
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import FullProtocol
from infini.evaluation.losses import LOGIT_CHUNK
from infini.evaluation.perplexity import full_attention_states
from infini.model.architectures import output_head
from infini.model.tensor_files import read_tensors, write_tensors

NUM_LIKELIEST = 20


class Teacher(NamedTuple):
    """Likeliest next tokens after every position of n documents."""

    log_probs: Tensor  # (n, T, NUM_LIKELIEST) float16
    ids: Tensor  # (n, T, NUM_LIKELIEST) int32

    @classmethod
    def load(cls, file: Path, documents: int) -> "Teacher":
        """Read the record of the first documents.

        Args:
            file: What `save` wrote.
            documents: Number of documents.

        Returns:
            Their record.

        Raises:
            InputError: If the file is no record of so many documents.
        """
        tensors, _ = read_tensors(file)
        try:
            teacher = cls(tensors["log_probs"][:documents], tensors["ids"][:documents])
        except KeyError as error:
            raise InputError(f"{file}: no {error} in it; run stage record_teacher") from None
        shapes = {teacher.log_probs.shape, teacher.ids.shape}
        if len(shapes) > 1 or teacher.ids.ndim != 3:
            raise InputError(f"{file}: shapes differ: {shapes}; run stage record_teacher")
        if len(teacher.ids) < documents:
            raise InputError(
                f"{file}: must hold ≥ {documents} documents, got {len(teacher.ids)}; "
                "run stage record_teacher"
            )
        return teacher

    def save(self, file: Path) -> None:
        """Write the record to a safetensors file."""
        write_tensors(file, self._asdict())


def empty_teacher() -> Teacher:
    """Return the record of no document."""
    log_probs = torch.zeros(0, 0, NUM_LIKELIEST)
    return Teacher(log_probs.half(), log_probs.int())


@torch.no_grad()
def record_log_probs(base: PreTrainedModel, documents: Pieces, full: FullProtocol) -> Teacher:
    """Record the untouched base's log-probabilities.

    Args:
        base: The untouched base.
        documents: Training documents.
        full: Context and stride of its attention.

    Returns:
        The record.
    """
    head, parts = output_head(base), []
    for tokens in progress(documents.tokens.split(1), "teacher"):
        with processes.autocast():
            hidden = full_attention_states(base, tokens.to(base.device), full.context, full.stride)
            likeliest = [
                head(chunk).float().log_softmax(-1).topk(min(NUM_LIKELIEST, len(head.weight)), -1)
                for chunk in hidden.split(LOGIT_CHUNK, 1)
            ]
        log_probs, ids = (torch.cat(x, 1).cpu() for x in zip(*likeliest, strict=True))
        parts.append((log_probs.half(), ids.int()))
    return Teacher(*(torch.cat(x) for x in zip(*parts, strict=True)))
