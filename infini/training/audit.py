"""A version trained once more with a suspect of the research log in it, and what that changes.

Before and after the long documents, the next token's perplexity beside the token after next's:
what the log's numbers are to be compared with.
"""

from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.corpus.pieces import Pieces
from infini.evaluation import perplexity
from infini.evaluation.baselines import of
from infini.evaluation.estimates import Metrics, difference, with_errors
from infini.evaluation.layer_error import LayerData
from infini.evaluation.losses import token_after_next
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.version import protocol_metrics
from infini.files import read_table
from infini.model.loading import load
from infini.model.retrofit import untrained
from infini.model.segmented.run import States
from infini.model.segmented.segments import run_segments
from infini.paths import EVALUATION, Version
from infini.training.config import Audit, Mistake, Replacement, VersionConfig
from infini.training.distillation import distill
from infini.training.long_context import Batch, Documents, own_rows, train_on_documents
from infini.training.seeds import TrainingResult, TrainingRun


class LabelsShiftedTwice(Documents):
    """The token after next is learnt: labels given shifted to a model that shifts them."""

    def targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return token_after_next(tokens, mask, self.segment_length)

    def validate(self, val: Pieces) -> float:
        return perplexity.double_shift(self.model, val, self.segment_length).mean


class MemoryCarried(Documents):
    """A document starts with the memory of the one before it: not reset."""

    def batches(self, seed: int) -> list[Batch]:
        order = super().batches(seed)
        pairs = zip(order[1:], order[:-1], strict=True)
        self.before = {tuple(batch.rows.tolist()): earlier.rows for batch, earlier in pairs}
        return order

    @torch.no_grad()
    def start(self, chosen: Tensor) -> States:
        before = self.before.get(tuple(chosen.tolist()))
        if before is None:  # the first of an epoch
            return {}
        rows, _ = own_rows(before[torch.arange(len(chosen)) % len(before)])
        length = self.text.tokens.shape[1] // self.segment_length * self.segment_length
        whole = self.text.tokens[rows, :length].to(self.model.device)
        with processes.autocast():
            _, states = run_segments(self.model, whole, self.segment_length)
        return states


MISTAKEN: dict[Mistake, type[Documents]] = {
    "labels_shifted_twice": LabelsShiftedTwice,
    "memory_carried": MemoryCarried,
}


def padding_counted(data: LayerData) -> LayerData:
    """Padding counts in the distillation's loss and is written to the memory."""
    return replace(data, mask=torch.ones_like(data.mask))


class Audited(NamedTuple):
    """What an audit measured, and the trainings that it took."""

    metrics: Metrics
    trainings: list[TrainingResult]


def run_audit(
    audit: Audit, recipe: VersionConfig, base: PreTrainedModel, job: TrainingRun, text: HeldOutText
) -> Audited:
    """Train by `recipe`; it is not distilled anew unless the audit is about that."""
    trainings = []
    if isinstance(recipe, Replacement):
        if audit.distill or audit.mistake == "padding_counted":
            trainings = [_distilled(audit, recipe, base, job, text.segment_length)]
            model = trainings[0].model
        else:
            model = load(Version(audit.of, job.seed).model_folder("distill"), base)
    else:
        model = untrained(base, job.seed, recipe.retrofit_options(text.segment_length))
    before = protocol_metrics(_losses(model, text))
    training = train_on_documents(
        model,
        recipe.long,
        text.segment_length,
        TrainingRun(f"{job.title} finetune", job.seed),
        MISTAKEN.get(audit.mistake, Documents),
    )
    losses = _losses(model, text)
    own = read_table(EVALUATION / audit.of / "losses.parquet", *losses.columns, "seed")
    own = own.query("seed == @job.seed")
    metrics = {
        "epochs": len(training.fit.curve),
        "best_epoch": training.fit.best_epoch,
        "before": before,
        "after": protocol_metrics(losses),
        "vs_version": with_errors(nats=difference(of(losses, "segmented"), of(own, "documents"))),
    }
    return Audited(metrics, [*trainings, training])


def _distilled(
    audit: Audit, recipe: Replacement, base: PreTrainedModel, job: TrainingRun, segment_length: int
) -> TrainingResult:
    """The version's layer distilled anew, with what the audit changes of that."""
    assert recipe.distill is not None
    job = TrainingRun(f"{job.title} distill", job.seed)
    if audit.mistake == "padding_counted":
        return distill(base, recipe.layer, recipe.distill, segment_length, job, padding_counted)
    return distill(base, recipe.layer, recipe.distill, segment_length, job)


def _losses(model: PreTrainedModel, text: HeldOutText) -> pd.DataFrame:
    return text.tables(
        {
            "segmented": text.documents(model),
            "memory_off": text.documents(model, "off"),
            "double_shift": text.double_shift(model),
        }
    )
