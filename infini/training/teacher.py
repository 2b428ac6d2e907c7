"""What the base itself says with full attention: its likeliest next tokens, recorded once.

A memory learns to say the same without the attention. The 20 likeliest hold nearly all that a
student can learn of a distribution (Cartridges, arXiv 2506.06266), at 120 bytes a token.
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

TOP = 20


class Teacher(NamedTuple):
    """Of documents: the likeliest tokens behind every position."""

    log_probs: Tensor  # (n, T, TOP) float16
    ids: Tensor  # (n, T, TOP) int32

    @classmethod
    def load(cls, file: Path, documents: int) -> "Teacher":
        """Of the first so many documents; InputError where the file is no record of them."""
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
                f"{file}: of {len(teacher.ids)} documents, {documents} are needed; "
                "run stage record_teacher"
            )
        return teacher

    def save(self, file: Path) -> None:
        """Write it."""
        write_tensors(file, self._asdict())


@torch.no_grad()
def record(base: PreTrainedModel, documents: Pieces, full: FullProtocol) -> Teacher:
    """What the untouched base says, with as much attention as the protocol `full` gives it."""
    head, found = output_head(base), []
    for tokens in progress(documents.tokens.split(1), "teacher"):
        with processes.autocast():
            hidden = full_attention_states(base, tokens.to(base.device), full.context, full.stride)
            parts = [
                head(part).float().log_softmax(-1).topk(min(TOP, len(head.weight)), -1)
                for part in hidden.split(LOGIT_CHUNK, 1)
            ]
        log_probs, ids = (torch.cat(x, 1).cpu() for x in zip(*parts, strict=True))
        found.append((log_probs.half(), ids.int()))
    return Teacher(*(torch.cat(x) for x in zip(*found, strict=True)))
