"""A version trained once more with a suspect of the seed log in it, and what that changes.

Before and after the long documents, the next token's perplexity beside the token after next's:
what the seed's numbers are to be compared with.
"""

from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from infini.base import load_model
from infini.distillation import distill
from infini.documents import train_on_documents
from infini.evaluation import Evaluator, of, protocol_figures
from infini.params import Adapter, Audit, Base, LongRecipe, Replacement
from infini.record import EVALUATION, model_folder
from infini.scores import Metrics, difference, with_errors
from infini.surgery import add_adapter, load
from infini.versions import Trained


class Audited(NamedTuple):
    """What an audit measured, and the trainings that it took."""

    metrics: Metrics
    trainings: list[Trained]


def run_audit(
    name: str, audit: Audit, recipe: Replacement | Adapter, base: Base, seed: int, by: Evaluator
) -> Audited:
    """Train by `recipe`; it is not distilled anew unless the audit is about that."""
    length, model, trainings = by.segment_length, load_model(base), []
    long: LongRecipe
    if isinstance(recipe, Adapter):
        long = recipe
        model = add_adapter(model, recipe, length, seed)
    else:
        long = recipe.finetune
        if audit.distill:
            title = f"{name} distill"
            trainings = [distill(model, recipe.layer, recipe.distill, length, seed, title)]
        else:
            model = load(model_folder(audit.of, "distill", seed), model)
    before = protocol_figures(_losses(model, by))
    training = train_on_documents(model, long, length, seed, f"{name} finetune")
    losses = _losses(model, by)
    own = pd.read_parquet(EVALUATION / audit.of / "losses.parquet").query("seed == @seed")
    metrics = {
        "epochs": len(training.fit.curve),
        "best_epoch": training.fit.best_epoch,
        "before": before,
        "after": protocol_figures(losses),
        "vs_version": with_errors(nats=difference(of(losses, "segmented"), of(own, "segmented"))),
    }
    return Audited(metrics, [*trainings, training])


def _losses(model: PreTrainedModel, by: Evaluator) -> pd.DataFrame:
    return by.losses(model, "segmented", "memory_off", "double_shift")
