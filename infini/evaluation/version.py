"""A version's evaluation: every protocol on test text, and what its training left behind.

`reports/metrics/<version>.json` is a row of every comparison, the same keys for each version;
`data/evaluation/<version>/` holds what figures and plots are computed from.
"""

import math
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini import processes
from infini.evaluation import estimates
from infini.evaluation.cost import read, state_bytes
from infini.evaluation.estimates import (
    Metrics,
    difference,
    mean_and_spread,
    recovery,
    rounded,
    with_errors,
)
from infini.evaluation.layer_error import mean_squared_error, record_layer
from infini.evaluation.passkey import passkey, summary
from infini.evaluation.protocols import HeldOutText
from infini.model.layers import added_parameters, frozen_layers, memory_modules
from infini.model.loading import loaded
from infini.paths import EVALUATION, METRICS, TRAINING, model_folder, read_json, write_json


class Evaluation(NamedTuple):
    """Of one model."""

    metrics: Metrics
    losses: pd.DataFrame  # loss tables of every protocol, named in a column `protocol`
    passkey: pd.DataFrame  # a row a case
    gates: pd.DataFrame  # layer, head, gate: sigmoid(β)


def of(losses: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One protocol's rows."""
    return losses[losses["protocol"] == protocol]


def protocol_metrics(losses: pd.DataFrame) -> Metrics:
    """Every protocol's figures; the audit's beside the next token's on the same documents."""
    names = losses["protocol"].unique()
    metrics = {name: estimates.perplexity(of(losses, name)) for name in names}
    if shifted := metrics.get("double_shift"):
        # The bytes of a token after next mean nothing.
        metrics["double_shift"] = {k: v for k, v in shifted.items() if k.startswith("ppl")}
        pieces = of(losses, "double_shift")["piece"].unique()
        segmented = of(losses, "segmented")
        same = estimates.perplexity(segmented[segmented["piece"].isin(pieces)])
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


def evaluate_base(base: PreTrainedModel, text: HeldOutText) -> Evaluation:
    """The untouched base: what every version is compared with, and its full-context ceiling."""
    return _evaluate(base, text, "short", "segmented", "sliding", "double_shift")


def evaluate_version(
    base: PreTrainedModel, version: str, seed: int, text: HeldOutText
) -> Evaluation:
    """A version's training, step by step, then its final model by every protocol."""
    untouched = read_json(METRICS / "base.json")
    before, metrics = untouched, Metrics()
    if model_folder(version, "distill", seed).is_dir():
        before, distilled = _distilled(base, version, seed, text)
        metrics["distill"] = distilled | _gap(untouched, before)
    with loaded(model_folder(version, "finetune", seed), base) as model:
        found = _evaluate(model, text, "short", "segmented", "memory_off", "double_shift")
        weights = _weights(model)
    metrics["finetune"] = _finetuned(version, seed, before, found.metrics)
    protocols = {k: v for k, v in found.metrics.items() if k not in ("passkey", "cost")}
    others = {k: found.metrics[k] for k in ("passkey", "cost")}
    against = against_base(found.losses, pd.read_parquet(EVALUATION / "base/losses.parquet"))
    return found._replace(metrics=metrics | weights | protocols | against | others)


def _evaluate(model: PreTrainedModel, text: HeldOutText, *protocols: str) -> Evaluation:
    """One model by the named protocols, and by passkey retrieval."""
    cache = read(model, text.documents.tokens[:1].to(model.device))
    cost = {"state_bytes": state_bytes(cache), "parameters": added_parameters(model)}
    gates = _gates(model)
    processes.deal_out(frozen_layers(model))
    losses = text.losses(model, *protocols)
    found = passkey(model, text.haystacks)
    metrics = protocol_metrics(losses) | {"passkey": summary(found), "cost": cost}
    return Evaluation(metrics, losses, found, gates)


def write(version: str, evaluations: dict[int, Evaluation]) -> None:
    """All seeds' of a version: the mean and spread of the metrics, the rest with a column seed."""
    write_json(
        METRICS / f"{version}.json", mean_and_spread([e.metrics for e in evaluations.values()])
    )
    folder = EVALUATION / version
    folder.mkdir(parents=True, exist_ok=True)

    def of_all_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
        pairs = zip(tables, evaluations, strict=True)
        return pd.concat([table.assign(seed=seed) for table, seed in pairs])

    found = list(evaluations.values())
    losses = of_all_seeds([e.losses for e in found])
    losses.to_parquet(folder / "losses.parquet", index=False)
    of_all_seeds([e.passkey for e in found]).to_csv(folder / "passkey.csv", index=False)
    of_all_seeds([e.gates for e in found]).to_csv(folder / "gates.csv", index=False)


def _gates(model: PreTrainedModel) -> pd.DataFrame:
    rows = [
        {"layer": index, "head": head, "gate": rounded(gate)}
        for index, module in memory_modules(model).items()
        for head, gate in enumerate(torch.sigmoid(module.infini_attention.beta.detach()).tolist())
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "gate"])


def _weights(model: PreTrainedModel) -> Metrics:
    """Learnt scalars by name and layer, such as α."""
    metrics: Metrics = {}
    for index, module in memory_modules(model).items():
        for name, value in module.weights().items():
            metrics.setdefault(name, {})[f"layer{index}"] = rounded(value)
    return metrics


def _trained(version: str, step: str, seed: int) -> Metrics:
    summary: Metrics = read_json(TRAINING / version / f"{step}.json")[str(seed)]
    return {name: rounded(value) for name, value in summary.items()}


def _distilled(
    base: PreTrainedModel, version: str, seed: int, text: HeldOutText
) -> tuple[Metrics, Metrics]:
    """The distilled model's figures by protocol, and its layer's distance from the replaced one."""
    with loaded(model_folder(version, "distill", seed), base) as model:
        processes.deal_out(frozen_layers(model))
        protocols = protocol_metrics(text.losses(model, "short", "segmented", "double_shift"))
        ((index, layer),) = memory_modules(model).items()
    error = mean_squared_error(layer, record_layer(base, index, text.samples))
    return protocols, {"test_loss": rounded(error), **_trained(version, "distill", seed)}


def _gap(untouched: Metrics, distilled: Metrics) -> Metrics:
    """What distillation costs on short samples: perplexity of the base and of the version."""
    original, now = untouched["short"]["ppl"], distilled["short"]["ppl"]
    return {"ppl_original": original, "ppl_distilled": now, "ppl_gap": rounded(now - original)}


def _finetuned(version: str, seed: int, before: Metrics, final: Metrics) -> Metrics:
    """The long-document training's figures, perplexity on test documents before and after."""
    summary = _trained(version, "finetune", seed)
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
