"""A version's evaluation: every protocol on test text, and what its training left behind.

`reports/metrics/<version>.json` is a row of every comparison, the same keys for each version;
`data/evaluation/<version>/` holds what figures and plots are computed from.
"""

import math
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini import perplexity
from infini.base import load_tokenizer
from infini.costs import parameters, read, state_bytes
from infini.distillation import distillation_error, record_layer
from infini.errors import InputError
from infini.layers import InfiniAdapter, infini_slots
from infini.params import Base, Evaluate
from infini.passkey import Haystacks, passkey, summary
from infini.pieces import Pieces
from infini.record import (
    DOCUMENTS,
    EVALUATION,
    METRICS,
    SAMPLES,
    TRAINING,
    model_folder,
    read_json,
    write_json,
)
from infini.scores import (
    Metrics,
    Score,
    difference,
    figures,
    mean_and_spread,
    recovery,
    rounded,
    with_errors,
)
from infini.sharding import shard_base
from infini.surgery import load, remove


class Evaluation(NamedTuple):
    """Of one model."""

    metrics: Metrics
    losses: pd.DataFrame  # Score.table of every protocol, named in a column `protocol`
    passkey: pd.DataFrame  # a row a case
    gates: pd.DataFrame  # layer, head, gate: sigmoid(β)


class Evaluator:
    """The test text, and the protocols over it."""

    def __init__(self, base: Base, segment_length: int, protocols: Evaluate):
        p = self.protocols = protocols
        self.segment_length = segment_length
        self.samples = Pieces.load(SAMPLES / "test.parquet", p.short.samples, width=segment_length)
        counts = [x.documents for x in (p.segmented, p.memory_off, p.double_shift, p.sliding)]
        self.documents = Pieces.load(DOCUMENTS / "test.parquet", max(counts))
        tokenizer = load_tokenizer(base)
        self.haystacks = Haystacks(tokenizer, self.documents, segment_length, p.passkey)

    def losses(self, model: PreTrainedModel, *names: str) -> pd.DataFrame:
        """What `model` loses by the named protocols."""
        tables = []
        for name in names:
            score: Score = getattr(self, f"_{name}")(model)
            tables.append(score.table(self.segment_length).assign(protocol=name))
        return pd.concat(tables, ignore_index=True)

    def _short(self, model: PreTrainedModel) -> Score:
        return perplexity.segmented(model, self.samples, self.segment_length, title="short")

    def _segmented(self, model: PreTrainedModel) -> Score:
        documents = self.documents.first(self.protocols.segmented.documents)
        return perplexity.segmented(model, documents, self.segment_length, title="segmented")

    def _memory_off(self, model: PreTrainedModel) -> Score:
        documents = self.documents.first(self.protocols.memory_off.documents)
        return perplexity.segmented(
            model, documents, self.segment_length, memory=False, title="memory off"
        )

    def _double_shift(self, model: PreTrainedModel) -> Score:
        documents = self.documents.first(self.protocols.double_shift.documents)
        return perplexity.double_shift(model, documents, self.segment_length, title="double shift")

    def _sliding(self, model: PreTrainedModel) -> Score:
        recipe = self.protocols.sliding
        longest = model.config.get_text_config().max_position_embeddings
        if recipe.context > longest:
            raise InputError(
                f"params.yaml: evaluate.sliding.context: the base reads {longest} tokens at most, "
                f"got {recipe.context}"
            )
        documents = self.documents.first(recipe.documents)
        return perplexity.sliding(model, documents, recipe.context, recipe.stride, title="sliding")


def of(losses: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One protocol's rows."""
    return losses[losses["protocol"] == protocol]


def protocol_figures(losses: pd.DataFrame) -> Metrics:
    """Every protocol's figures; the audit's beside the next token's on the same documents."""
    metrics = {name: figures(of(losses, name)) for name in losses["protocol"].unique()}
    if shifted := metrics.get("double_shift"):
        # The bytes of a token after next mean nothing.
        metrics["double_shift"] = {k: v for k, v in shifted.items() if k.startswith("ppl")}
        pieces = of(losses, "double_shift")["piece"].unique()
        segmented = of(losses, "segmented")
        same = figures(segmented[segmented["piece"].isin(pieces)])
        metrics["double_shift"]["next_token_ppl"] = same["ppl"]
    return metrics


def against_base(losses: pd.DataFrame, base: pd.DataFrame) -> Metrics:
    """Paired by document: nats a token more than the base, the memory's gain, the recovery."""
    ours, untouched = of(losses, "segmented"), of(base, "segmented")
    return {
        "vs_base": with_errors(nats=difference(ours, untouched)),
        "memory": with_errors(gain=difference(of(losses, "memory_off"), ours)),
        "context_recovery": with_errors(share=recovery(ours, untouched, of(base, "sliding"))),
    }


def evaluate_base(model: PreTrainedModel, evaluator: Evaluator) -> Evaluation:
    """The untouched base: what every version is compared with, and its full-context ceiling."""
    cost = _cost(model, evaluator)
    shard_base(model)
    losses = evaluator.losses(model, "short", "segmented", "sliding", "double_shift")
    found = passkey(model, evaluator.haystacks)
    metrics = protocol_figures(losses) | {"passkey": summary(found), "cost": cost}
    return Evaluation(metrics, losses, found, _gates(model))


def evaluate_version(
    base: PreTrainedModel, version: str, seed: int, evaluator: Evaluator
) -> Evaluation:
    """A version's training, step by step, then its final model by every protocol."""
    untouched = read_json(METRICS / "base.json")
    before = untouched
    metrics: Metrics = {}
    if (folder := model_folder(version, "distill", seed)).is_dir():
        model = shard_base(load(folder, base))
        before = protocol_figures(evaluator.losses(model, "short", "segmented", "double_shift"))
        metrics["distill"] = _distillation(model, evaluator) | {
            **_training(version, "distill", seed),
            "ppl_original": untouched["short"]["ppl"],
            "ppl_distilled": before["short"]["ppl"],
            "ppl_gap": rounded(before["short"]["ppl"] - untouched["short"]["ppl"]),
        }
    model = load(model_folder(version, "finetune", seed), base)
    cost, gates = _cost(model, evaluator), _gates(model)
    shard_base(model)
    losses = evaluator.losses(model, "short", "segmented", "memory_off", "double_shift")
    found = passkey(model, evaluator.haystacks)
    final = protocol_figures(losses)
    metrics["finetune"] = _finetuning(version, seed, before, final)
    for index, slot in infini_slots(model).items():
        if isinstance(slot, InfiniAdapter):
            metrics.setdefault("alpha", {})[f"layer{index}"] = rounded(slot.alpha.item())
    metrics |= final | against_base(losses, pd.read_parquet(EVALUATION / "base/losses.parquet"))
    metrics |= {"passkey": summary(found), "cost": cost}
    remove(model)
    return Evaluation(metrics, losses, found, gates)


def write(version: str, evaluations: dict[int, Evaluation]) -> None:
    """All seeds' of a version: the mean and spread of the metrics, the rest with a column seed."""
    write_json(
        METRICS / f"{version}.json", mean_and_spread([e.metrics for e in evaluations.values()])
    )
    folder = EVALUATION / version
    folder.mkdir(parents=True, exist_ok=True)
    losses, found, gates = (
        pd.concat([getattr(e, name).assign(seed=seed) for seed, e in evaluations.items()])
        for name in ("losses", "passkey", "gates")
    )
    losses.to_parquet(folder / "losses.parquet", index=False)
    found.to_csv(folder / "passkey.csv", index=False)
    gates.to_csv(folder / "gates.csv", index=False)


def _cost(model: PreTrainedModel, evaluator: Evaluator) -> Metrics:
    """What must be kept after a document, and what the memory adds to the base."""
    cache = read(model, evaluator.documents.tokens[:1].to(model.device))
    return {"state_bytes": state_bytes(cache), "parameters": parameters(model)}


def _gates(model: PreTrainedModel) -> pd.DataFrame:
    rows = [
        {"layer": index, "head": head, "gate": rounded(gate)}
        for index, slot in infini_slots(model).items()
        for head, gate in enumerate(torch.sigmoid(slot.attention.beta.detach()).tolist())
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "gate"])


def _training(version: str, step: str, seed: int) -> Metrics:
    summary: Metrics = read_json(TRAINING / version / f"{step}.json")[str(seed)]
    return {name: rounded(value) for name, value in summary.items()}


def _distillation(model: PreTrainedModel, evaluator: Evaluator) -> Metrics:
    """How far the distilled layer is from the one it replaced; `model` is the base afterwards."""
    ((index, layer),) = infini_slots(model).items()
    teacher = record_layer(remove(model), index, evaluator.samples)
    return {"test_loss": rounded(distillation_error(layer, teacher))}


def _finetuning(version: str, seed: int, before: Metrics, final: Metrics) -> Metrics:
    """The long-document training's figures, perplexity on test documents before and after."""
    summary = _training(version, "finetune", seed)
    losses = {k: summary.pop(k) for k in ("train_loss", "val_loss") if k in summary}
    first, last = before["segmented"]["ppl"], final["segmented"]["ppl"]
    return summary | {
        **{k.replace("_loss", "_ppl"): rounded(math.exp(v)) for k, v in losses.items()},
        "ppl_before": first,
        "ppl_after": last,
        "ppl_improvement": rounded(first - last),
        "double_shift_before": before["double_shift"]["ppl"],
        "double_shift_next_before": before["double_shift"]["next_token_ppl"],
    }
