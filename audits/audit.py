"""Train a version once more with a suspect of the research log in it: one audit of params.yaml.

Before and after the long documents the model is scored by the next token and by the token after
next (the log's loop). `audits/params.yaml` lists the audits, `audits/results/` has their metrics.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.estimates import Metrics, difference, rows_of_protocol, with_errors
from infini.evaluation.evaluate import protocol_metrics
from infini.evaluation.layer_error import LayerData
from infini.evaluation.losses import token_after_next
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.rounding import write_metrics
from infini.files import read_table, read_yaml
from infini.model.base import load_base, load_tokenizer
from infini.model.config import Base
from infini.model.loading import load
from infini.model.retrofit import retrofit_with_seed
from infini.model.segmented.run import LayerStates, run_segments
from infini.paths import Version
from infini.schema import Section, error_line
from infini.training.config import Adapter, Replacement, VersionConfig, WindowAdapter
from infini.training.distillation import distill
from infini.training.long_context import (
    DocumentBatch,
    DocumentTraining,
    own_rows,
    train_on_documents,
)
from infini.training.seeds import TrainingResult, TrainingRun

FOLDER = Path("audits")
PARAMS, RESULTS = FOLDER / "params.yaml", FOLDER / "results"


class Audit(Section):
    """One audit: a version and what differs from its own training."""

    # name of the version in params.yaml
    version: str
    # what the audit asks, for the table
    question: str
    # a mistake of the research log that is put into the training
    mistake: Literal["none", "labels_shifted_twice", "memory_carried", "padding_counted"] = "none"
    # settings that replace those of the version; without `distill` its distilled layer is loaded
    distill: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)


class LabelsShiftedTwice(DocumentTraining):
    """Training on the token after next: labels given shifted to a model that shifts them."""

    def targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the token after next of every position."""
        return token_after_next(tokens, mask, self.segment_length)

    def validate(self, val: Pieces) -> float:
        """Return the nats per token of the token after next."""
        return perplexity.score_double_shift(self.model, val, self.segment_length).mean


class MemoryCarried(DocumentTraining):
    """Training without a reset: a document starts with the memory of the one before it."""

    def batches(self, seed: int) -> list[DocumentBatch]:
        """Return an epoch's batches and remember which rows come before which."""
        order = super().batches(seed)
        pairs = zip(order[1:], order[:-1], strict=True)
        self.before = {tuple(batch.rows.tolist()): earlier.rows for batch, earlier in pairs}
        return order

    @torch.no_grad()
    def initial_states(self, chosen: Tensor) -> LayerStates:
        """Return the states after the documents before; empty for the first of an epoch."""
        before = self.before.get(tuple(chosen.tolist()))
        if before is None:
            return {}
        rows, _ = own_rows(before[torch.arange(len(chosen)) % len(before)])
        length = self.text.tokens.shape[1] // self.segment_length * self.segment_length
        whole = self.text.tokens[rows, :length].to(self.model.device)
        with processes.autocast():
            _, states = run_segments(self.model, whole, self.segment_length)
        return states


DOCUMENTS: dict[str, type[DocumentTraining]] = {
    "labels_shifted_twice": LabelsShiftedTwice,
    "memory_carried": MemoryCarried,
}


def padding_counted(data: LayerData) -> LayerData:
    """Let padding count in the distillation's loss and be written to the memory."""
    return replace(data, mask=torch.ones_like(data.mask))


def read_audits(file: Path = PARAMS) -> dict[str, Audit]:
    """Read all audits by name; InputError names the first wrong key."""
    try:
        return TypeAdapter(dict[str, Audit]).validate_python(read_yaml(file).get("audits", {}))
    except ValidationError as invalid:
        raise InputError(f"{file}: audits.{_first_error(invalid)}") from None


def audited_version(audit: Audit, versions: dict[str, VersionConfig]) -> VersionConfig:
    """Return the audit's version with what the audit changes; InputError if it is impossible."""
    if (version := versions.get(audit.version)) is None:
        known = ", ".join(versions)
        raise InputError(f"version must be one of {known}, got {audit.version!r}")
    if isinstance(version, WindowAdapter):
        raise InputError(f"version must read by segments, as the log does, got {audit.version!r}")
    if "distill" not in version.steps and (audit.distill or audit.mistake == "padding_counted"):
        key = "distill" if audit.distill else "mistake"
        raise InputError(f"{key}: {audit.version!r} has no distillation")
    if isinstance(version, Adapter) and (own := audit.finetune.keys() & {*version.version_keys}):
        raise InputError(f"finetune.{min(own)}: not a setting of a training")
    settings = version.model_dump()
    if isinstance(version, Replacement):
        if audit.distill:
            settings["distill"] |= audit.distill
        settings["finetune"] |= audit.finetune
    else:
        settings |= audit.finetune
    try:
        changed = type(version).model_validate(settings)
    except ValidationError as invalid:
        raise InputError(_first_error(invalid)) from None
    if audit.mistake in DOCUMENTS and changed.document_recipe.question_share:
        raise InputError("mistake: the log had no synthetic questions")
    if (
        audit.mistake == "labels_shifted_twice"
        and changed.document_recipe.objective == "distillation"
    ):
        raise InputError("mistake: a teacher has no labels to shift")
    return changed


def _first_error(invalid: ValidationError) -> str:
    error = invalid.errors()[0]
    return error_line(".".join(map(str, error["loc"])), error)


def run_audit(
    audit: Audit, config: VersionConfig, base: PreTrainedModel, run: Version, text: HeldOutText
) -> tuple[Metrics, list[TrainingResult]]:
    """Train and score the changed version.

    Args:
        audit: The audit.
        config: The version with the audit's changes.
        base: The untouched base.
        run: Name of the audit, and the seed.
        text: The held-out text to score on.

    Returns:
        Metrics of the audit, and the trainings that it took.
    """
    trainings = []
    version = Version(audit.version, run.seed)
    if isinstance(config, Replacement):
        if audit.distill or audit.mistake == "padding_counted":
            trainings = [_distill(audit, config, base, run, text.segment_length)]
            model = trainings[0].model
        else:
            model = load(version.model_folder("distill"), base)
    else:
        model = retrofit_with_seed(base, run.seed, config.retrofit_options(text.segment_length))
    before = protocol_metrics(_losses(model, text))
    training = train_on_documents(
        model,
        config.document_recipe,
        text.segment_length,
        TrainingRun(run, "finetune"),
        DOCUMENTS.get(audit.mistake, DocumentTraining),
    )
    losses = _losses(model, text)
    own = read_table(version.losses, *losses.columns, "seed").query("seed == @run.seed")
    metrics = {
        "epochs": len(training.fit.curve),
        "best_epoch": training.fit.best_epoch,
        "before": before,
        "after": protocol_metrics(losses),
        "vs_version": with_errors(
            nats=difference(
                rows_of_protocol(losses, "segmented"), rows_of_protocol(own, "documents")
            )
        ),
    }
    return metrics, [*trainings, training]


def _distill(
    audit: Audit, config: Replacement, base: PreTrainedModel, run: Version, segment_length: int
) -> TrainingResult:
    """Distil the version's layer anew, with the audit's changes."""
    assert config.distill is not None
    changes = [padding_counted] if audit.mistake == "padding_counted" else []
    return distill(
        base, config.layer, config.distill, segment_length, TrainingRun(run, "distill"), *changes
    )


def _losses(model: PreTrainedModel, text: HeldOutText) -> pd.DataFrame:
    return text.tables(
        {
            "segmented": text.documents(model),
            "memory_off": text.documents(model, "off"),
            "double_shift": text.double_shift(model),
        }
    )


def main(name: str) -> None:
    watch = Stopwatch(f"{name}-audit")
    audits = read_audits()
    if (audit := audits.get(name)) is None:
        raise InputError(f"{PARAMS}: audits must be one of {', '.join(audits)}, got {name!r}")
    try:
        config = audited_version(audit, params.all_versions())
    except InputError as error:
        raise InputError(f"{PARAMS}: audits.{name}.{error}") from None
    base = params.get("base", Base)
    processes.set_precision(base.precision)
    length = params.get("data.segment_length", int)
    tokenizer = load_tokenizer(base.model, base.revision)
    text = HeldOutText(params.get("evaluate", Evaluate), length, tokenizer)
    model = load_base(base.model, base.revision).to(processes.device())
    metrics, trainings = run_audit(
        audit, config, model, Version(name, params.get("seed", int)), text
    )
    if not processes.is_main():
        return
    write_metrics(RESULTS / f"{name}.json", metrics)
    watch.write()
    for training in trainings:
        training.checkpoint.remove()


if __name__ == "__main__":
    run_stage(main, parallel=True)
