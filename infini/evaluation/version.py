"""A version's evaluation: every protocol on test text, and what its training left behind.

`reports/metrics/<version>.json` is a row of every comparison, the same keys for each version;
`data/evaluation/<version>/` holds what figures and plots are computed from.
"""

from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini import processes
from infini.errors import InputError
from infini.evaluation import estimates
from infini.evaluation.baselines import (
    WINDOW,
    against_opponents,
    at_other_windows,
    equal_window,
    max_state_bytes,
    of,
    opponents,
    token_bytes,
    window_bytes,
)
from infini.evaluation.cost import StateBytes, itemised
from infini.evaluation.estimates import Estimate, Metrics, exp, mean_and_spread, rounded
from infini.evaluation.layer_error import mean_squared_error, record_layer
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.retrieval import retrieval, summary
from infini.evaluation.score import Score
from infini.evaluation.training_record import check_settings, figures_of, seeds_of
from infini.files import read_json, read_table, write_json
from infini.model.loading import loaded
from infini.model.segmented.layers import added_parameters, frozen_layers, segmented_layers
from infini.model.window.layer import window_layers
from infini.paths import EVALUATION, METRICS, Version


class Evaluation(NamedTuple):
    """Of one model."""

    metrics: Metrics
    losses: pd.DataFrame  # loss tables of every protocol, named in a column `protocol`
    passkey: pd.DataFrame  # a row a question
    gates: pd.DataFrame  # layer, head, gate: sigmoid(β)


def protocol_metrics(losses: pd.DataFrame) -> Metrics:
    """Every protocol's figures; the log's loop beside the next token on the same documents."""
    names = losses["protocol"].unique()
    metrics = {name: estimates.perplexity(of(losses, name)) for name in names}
    if shifted := metrics.get("double_shift"):
        # The bytes of a token after next mean nothing.
        metrics["double_shift"] = {k: v for k, v in shifted.items() if k.startswith("ppl")}
        pieces = of(losses, "double_shift")["piece"].unique()
        long = of(losses, "documents" if "documents" in names else "segmented")
        same = estimates.perplexity(long[long["piece"].isin(pieces)])
        metrics["double_shift"]["next_token_ppl"] = same["ppl"]
    return metrics


def evaluate_base(base: PreTrainedModel, text: HeldOutText) -> Evaluation:
    """The untouched base: by blind segments, through windows of every size, by full attention."""
    text.check(base)
    a_token, sizes = token_bytes(base, text), text.recipes.window.sizes
    kept = {size: window_bytes(base, text, size) for size in sizes}
    processes.deal_out(frozen_layers(base))
    scores = {
        "short": text.short(base),
        "segmented": text.documents(base),
        "full": text.full(base),
        "double_shift": text.double_shift(base),
        **{f"{WINDOW}{size}": text.window(base, size) for size in sizes},
    }
    losses = text.tables(scores)
    found = retrieval(base, text.haystacks, text.recipes.full.context)
    metrics = protocol_metrics(losses)
    metrics["full"]["bytes"] = a_token * text.recipes.full.context
    metrics["window"] = {
        f"w{size}": metrics.pop(f"{WINDOW}{size}") | {"tokens": size, "bytes": kept[size]}
        for size in sizes
    }
    metrics |= summary(found) | {"cost": {"parameters": 0}}
    metrics["bytes"] = itemised(StateBytes(a_token * (text.segment_length - 1)))
    return Evaluation(metrics, losses, found, _gates(base))


def evaluate_seeds(
    base: PreTrainedModel, version: str, options: dict[str, Any], text: HeldOutText
) -> dict[int, Evaluation]:
    """`evaluate_version` with every seed that it was trained with; in full with the first.

    options: what the version gives to `retrofit`. InputError where its models are not that.
    """
    seeds = seeds_of(version)
    for seed in seeds:
        check_settings(Version(version, seed).model_folder("finetune"), options)
    return {
        seed: evaluate_version(base, version, seed, text, in_full=seed == seeds[0])
        for seed in seeds
    }


def evaluate_version(
    base: PreTrainedModel, version: str, seed: int, text: HeldOutText, in_full: bool = True
) -> Evaluation:
    """A version's training, step by step, then its final model and its opponents.

    in_full: also short samples, the log's loop, the memory kept empty or another's, retrieval.
    """
    text.check(base)
    untouched, metrics = _untouched(METRICS / "base.json"), Metrics()
    before = untouched | {"documents": untouched["segmented"]}
    if Version(version, seed).model_folder("distill").is_dir():
        before, distilled = _distilled(base, version, seed, text)
        metrics["distill"] = distilled | _gap(untouched, before)
    with loaded(Version(version, seed).model_folder("finetune"), base) as model:
        kept = max_state_bytes(model, text)
        added, gates, weights = added_parameters(model), _gates(model), _weights(model)
        processes.deal_out(frozen_layers(model))
        by_window = bool(window_layers(model))
        scores = _scores(model, text, in_full)
        found = retrieval(model, text.haystacks) if in_full else pd.DataFrame()
    losses = text.tables(scores)
    theirs = _losses_of_base(EVALUATION / "base/losses.parquet", losses)
    control = Version(version, seed).model_folder("control")
    losses = pd.concat([losses, opponents(base, control, text, kept.total, theirs)])
    final = protocol_metrics(losses)
    if by_window:  # untrained, it is the base's
        before = {"documents": final["memory_off"]} if in_full else {}
    metrics["finetune"] = _finetuned(version, seed, before, final)
    against = against_opponents(losses, theirs)
    against["equal_bytes"]["window"] = equal_window(base, text, kept.total)
    metrics |= weights | final | against | {"bytes": itemised(kept), "cost": {"parameters": added}}
    metrics |= summary(found) if in_full else {}
    if by_window:
        folders = Version(version, seed).model_folder("finetune"), control
        metrics["at"], others = at_other_windows(base, folders, text, theirs)
        losses = pd.concat([losses, *others])
    return Evaluation(metrics, losses.reset_index(drop=True), found, gates)


def _untouched(file: Path) -> Metrics:
    """The base's figures; InputError without the perplexities that versions are held against."""
    found = read_json(file, "short", "segmented")
    for protocol in ("short", "segmented"):
        ppl = found[protocol].get("ppl") if isinstance(found[protocol], dict) else None
        if type(ppl) not in (int, float):
            raise InputError(f"{file}: no {protocol}.ppl in it; run stage evaluate_ppl base")
    return found


def _losses_of_base(file: Path, ours: pd.DataFrame) -> pd.DataFrame:
    """The base's loss tables; InputError where they are not of the documents of `ours`."""
    theirs: pd.DataFrame = read_table(file, *ours.columns)[ours.columns]
    pieces = [of(t, p) for t, p in ((ours, "documents"), (theirs, "segmented"))]
    sizes = [table.groupby("piece")[["bytes", "tokens"]].agg(["first", "sum"]) for table in pieces]
    if not sizes[0].equals(sizes[1]):
        raise InputError(f"{file}: of other test documents; run stage evaluate_ppl base")
    return theirs


def _scores(model: PreTrainedModel, text: HeldOutText, in_full: bool) -> dict[str, Score]:
    """A version's, by protocol."""
    scores = {"documents": text.documents(model)}
    if not in_full:
        return scores
    scores |= {
        "short": text.short(model),
        "memory_off": text.documents(model, "off"),
        "memory_swapped": text.documents(model, "swapped"),
    }
    if not window_layers(model):  # the log's loop is of segments
        scores["double_shift"] = text.double_shift(model)
    return scores


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
    losses.to_parquet(folder / "losses.parquet", index=False, write_page_checksum=True)
    of_all_seeds([e.passkey for e in found]).to_csv(folder / "passkey.csv", index=False)
    of_all_seeds([e.gates for e in found]).to_csv(folder / "gates.csv", index=False)


def _gates(model: PreTrainedModel) -> pd.DataFrame:
    """By layer and head: the memory's share of the output, or the gate of a window's reads."""
    betas = {i: module.infini_attention.beta for i, module in segmented_layers(model).items()}
    for index, layer in window_layers(model).items():
        if layer.memory is not None:
            betas[index] = layer.memory.gate.bias
    rows = [
        {"layer": index, "head": head, "gate": rounded(gate)}
        for index, beta in betas.items()
        for head, gate in enumerate(torch.sigmoid(beta.detach()).tolist())
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "gate"])


def _weights(model: PreTrainedModel) -> Metrics:
    """Learnt scalars by name and layer, such as α."""
    metrics: Metrics = {}
    for index, module in segmented_layers(model).items():
        for name, value in module.weights().items():
            metrics.setdefault(name, {})[f"layer{index}"] = rounded(value)
    return metrics


def _distilled(
    base: PreTrainedModel, version: str, seed: int, text: HeldOutText
) -> tuple[Metrics, Metrics]:
    """The figures by protocol before the long documents, and the layers' mean squared error
    against those that they replace."""
    with loaded(Version(version, seed).model_folder("distill"), base) as model:
        processes.deal_out(frozen_layers(model))
        scores = {
            "short": text.short(model),
            "documents": text.documents(model),
            "double_shift": text.double_shift(model),
        }
        layers = segmented_layers(model)
    errors = [
        mean_squared_error(layer, record_layer(base, index, text.samples))
        for index, layer in layers.items()
    ]
    figures = {"test_loss": rounded(mean(errors)), **figures_of(version, "distill", seed)}
    return protocol_metrics(text.tables(scores)), figures


def _gap(untouched: Metrics, distilled: Metrics) -> Metrics:
    """What distillation costs on short samples: perplexity of the base and of the version."""
    original, now = untouched["short"]["ppl"], distilled["short"]["ppl"]
    return {"ppl_original": original, "ppl_distilled": now, "ppl_gap": rounded(now - original)}


def _finetuned(version: str, seed: int, before: Metrics, final: Metrics) -> Metrics:
    """The long-document training's figures, perplexity on test documents before and after."""
    summary = figures_of(version, "finetune", seed)
    val = {}
    if "val_loss" in summary:
        val = {"val_ppl": rounded(exp(Estimate(summary.pop("val_loss"))).value)}
    metrics = summary | val
    metrics["ppl_after"] = last = final["documents"]["ppl"]
    if "documents" in before:
        metrics["ppl_before"] = first = before["documents"]["ppl"]
        metrics["ppl_improvement"] = rounded(first - last)
    if shifted := before.get("double_shift"):
        metrics["double_shift_before"] = shifted["ppl"]
        metrics["double_shift_next_before"] = shifted["next_token_ppl"]
    return metrics
