"""Evaluation of the untouched base and of versions: every protocol on test text.

Metrics go to `reports/metrics/<version>.json`, the same keys for each version; curves to
`reports/curves/<version>.csv`; loss tables, for pairing, to `data/evaluation/<version>/`.
"""

from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini import processes
from infini.errors import InputError
from infini.evaluation.baselines import (
    evaluate_extra_windows,
    gains_over_baselines,
    score_baselines,
    window_protocol,
)
from infini.evaluation.byte_budget import (
    StateSize,
    equal_window,
    full_attention_bytes,
    max_state_bytes,
)
from infini.evaluation.cost import StateBytes
from infini.evaluation.curves import CURVE_DIGITS, ERRORS, KEYS, curve_table
from infini.evaluation.estimates import (
    Metrics,
    mean_and_spread,
    perplexity_metrics,
    rounded,
    rows_of_protocol,
)
from infini.evaluation.layer_error import mean_squared_error, record_layer
from infini.evaluation.protocols import HeldOutText
from infini.evaluation.retrieval import retrieval_metrics, score_retrieval
from infini.evaluation.rounding import write_metrics, write_rounded_csv
from infini.evaluation.score import Score
from infini.evaluation.training_record import check_settings, trained_seeds, training_figures
from infini.files import read_table
from infini.model.loading import loaded
from infini.model.modules import added_parameters, frozen_layers, segmented_layers, window_layers
from infini.paths import Version

BASE = Version("base")


class Evaluation(NamedTuple):
    """Results of one model."""

    metrics: Metrics
    losses: pd.DataFrame  # loss tables of every protocol, named in a column `protocol`
    questions: pd.DataFrame  # a row per retrieval question
    gates: pd.DataFrame  # layer, head, gate: sigmoid(β)


def protocol_metrics(losses: pd.DataFrame) -> Metrics:
    """Compute every protocol's metrics.

    Those of `double_shift` have the next token's perplexity on the same documents beside them.
    """
    names = losses["protocol"].unique()
    metrics = {name: perplexity_metrics(rows_of_protocol(losses, name)) for name in names}
    if shifted := metrics.get("double_shift"):
        # The token after next has no bytes of its own.
        metrics["double_shift"] = {k: v for k, v in shifted.items() if k.startswith("ppl")}
        pieces = rows_of_protocol(losses, "double_shift")["piece"].unique()
        long = rows_of_protocol(losses, "documents" if "documents" in names else "segmented")
        same = perplexity_metrics(long[long["piece"].isin(pieces)])
        metrics["double_shift"]["next_token_ppl"] = same["ppl"]
    return metrics


def evaluate_base(base: PreTrainedModel, text: HeldOutText) -> Evaluation:
    """Evaluate the untouched base: segments without memory, windows of all sizes, full attention.

    Args:
        base: The base.
        text: What to score on.

    Returns:
        Its results.
    """
    text.check(base)
    windows, context = text.recipes.window, text.recipes.full.context
    full, segment = (full_attention_bytes(base, n) for n in (context, text.segment_length - 1))
    window_size = StateSize.by_window(base, windows.sinks)
    state = {size: window_size.of(size) for size in windows.sizes}
    processes.shard_layers(frozen_layers(base))
    losses = text.tables(
        {
            "short": text.short(base),
            "segmented": text.documents(base),
            "full": text.full(base),
            "double_shift": text.double_shift(base),
            **{window_protocol(size): text.window(base, size) for size in windows.sizes},
        }
    )
    questions = score_retrieval(base, text.haystacks, context)
    metrics = protocol_metrics(losses)
    metrics["full"]["state_bytes"] = full
    for size in windows.sizes:
        metrics[window_protocol(size)] |= {"tokens": size, "state_bytes": state[size]}
    metrics |= retrieval_metrics(questions)
    metrics |= {"added_parameters": 0, "state_bytes": StateBytes(segment).as_metrics()}
    return Evaluation(metrics, losses, questions, _gates(base))


def evaluate_seeds(
    base: PreTrainedModel, name: str, options: dict[str, Any], text: HeldOutText
) -> dict[int, Evaluation]:
    """Evaluate a version with every seed that it was trained with, in full with the first.

    Args:
        base: The untouched base.
        name: The version's name.
        options: The version's arguments of `infini.retrofit`.
        text: What to score on.

    Returns:
        Results by seed.

    Raises:
        InputError: If a trained model has other options.
    """
    versions = [Version(name, seed) for seed in trained_seeds(Version(name))]
    for version in versions:
        check_settings(version.model_folder("finetune"), options)
    return {
        version.seed: evaluate_version(base, version, text, in_full=version is versions[0])
        for version in versions
    }


def evaluate_version(
    base: PreTrainedModel, version: Version, text: HeldOutText, in_full: bool = True
) -> Evaluation:
    """Evaluate a version: its training step by step, its final model, its baselines.

    Args:
        base: The untouched base; it is itself again afterwards.
        version: Name and seed.
        text: What to score on.
        in_full: Score short samples, the log's loop, an empty and another document's memory, and
            retrieval too.

    Returns:
        Its results.
    """
    text.check(base)
    metrics, distilled = Metrics(), Metrics()
    if version.model_folder("distill").is_dir():
        distilled, metrics["distill"] = _distilled(base, version, text)
    with loaded(version.model_folder("finetune"), base) as model:
        state = max_state_bytes(model, text.long_documents.tokens[:1], text.segment_length)
        added, gates, weights = added_parameters(model), _gates(model), _weights(model)
        processes.shard_layers(frozen_layers(model))
        by_window = bool(window_layers(model))
        scores = _scores(model, text, in_full)
        questions = score_retrieval(model, text.haystacks) if in_full else pd.DataFrame()
    losses = text.tables(scores)
    base_losses = _base_losses(losses)
    untouched = protocol_metrics(base_losses)
    control = version.model_folder("control")
    baselines = score_baselines(base, control, text, state.total, base_losses)
    losses = pd.concat([losses, baselines])
    final = protocol_metrics(losses)
    before = untouched | {"documents": untouched["segmented"]}
    if distilled:
        before = distilled
        metrics["distill"] |= _distillation_gap(untouched, distilled)
    if by_window:  # untrained, its memory is off
        before = {"documents": final["memory_off"]} if in_full else {}
    metrics["finetune"] = _finetuned(version, before, final)
    gains = gains_over_baselines(losses, base_losses)
    gains["baseline"]["window"] = equal_window(base, state.total, text.recipes.window.sinks)
    metrics |= weights | final | gains
    metrics |= {"state_bytes": state.as_metrics(), "added_parameters": added}
    metrics |= retrieval_metrics(questions) if in_full else {}
    if by_window:
        folders = version.model_folder("finetune"), control
        at_windows, tables = evaluate_extra_windows(base, folders, text, base_losses)
        metrics |= at_windows
        losses = pd.concat([losses, *tables])
    return Evaluation(metrics, losses.reset_index(drop=True), questions, gates)


def write_evaluations(version: Version, evaluations: dict[int, Evaluation]) -> None:
    """Write metrics, curves and loss tables of a version.

    Args:
        version: The version; its seed does not matter.
        evaluations: Results by seed. Metrics are their mean and spread.
    """
    results = list(evaluations.values())

    def of_all_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
        pairs = zip(tables, evaluations, strict=True)
        return pd.concat([table.assign(seed=seed) for table, seed in pairs])

    losses = of_all_seeds([result.losses for result in results])
    version.evaluation_folder.mkdir(parents=True, exist_ok=True)
    losses.to_parquet(version.losses, index=False, write_page_checksum=True)
    metrics = mean_and_spread([result.metrics for result in results])
    write_metrics(version.metrics, metrics)
    curves = curve_table(
        metrics,
        losses,
        pd.concat([result.questions for result in results]),
        of_all_seeds([result.gates for result in results]),
        None if version.name == BASE.name else _base_losses(results[0].losses),
    )
    write_rounded_csv(version.curves, curves, KEYS, ERRORS, CURVE_DIGITS)


def _base_losses(losses: pd.DataFrame) -> pd.DataFrame:
    """Read the base's loss tables; InputError unless they are of the documents of `losses`."""
    file = BASE.losses
    table: pd.DataFrame = read_table(file, *losses.columns)[losses.columns]
    pieces = [rows_of_protocol(losses, "documents"), rows_of_protocol(table, "segmented")]
    sizes = [rows.groupby("piece")[["bytes", "tokens"]].agg(["first", "sum"]) for rows in pieces]
    if not sizes[0].equals(sizes[1]):
        raise InputError(f"{file}: scored other test documents; run stage evaluate_ppl base")
    return table


def _scores(model: PreTrainedModel, text: HeldOutText, in_full: bool) -> dict[str, Score]:
    """Score a version, by protocol."""
    scores = {"documents": text.documents(model)}
    if not in_full:
        return scores
    scores |= {
        "short": text.short(model),
        "memory_off": text.documents(model, "off"),
        "memory_swapped": text.documents(model, "swapped"),
    }
    if not window_layers(model):  # the log's loop reads segments
        scores["double_shift"] = text.double_shift(model)
    return scores


def _gates(model: PreTrainedModel) -> pd.DataFrame:
    """Return the gate of the memory by layer and head."""
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
    """Return trained scalars, such as α, by name and layer."""
    metrics: Metrics = {}
    for index, module in segmented_layers(model).items():
        for name, value in module.learned_scalars().items():
            metrics.setdefault(name, {})[f"layer{index}"] = rounded(value)
    return metrics


def _distilled(
    base: PreTrainedModel, version: Version, text: HeldOutText
) -> tuple[Metrics, Metrics]:
    """Return metrics by protocol before the long documents, and those of the distillation."""
    with loaded(version.model_folder("distill"), base) as model:
        processes.shard_layers(frozen_layers(model))
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
    figures = {"test_loss": rounded(mean(errors)), **training_figures(version, "distill")}
    return protocol_metrics(text.tables(scores)), figures


def _distillation_gap(untouched: Metrics, distilled: Metrics) -> Metrics:
    """Return the perplexity of short samples for base and version, and their difference."""
    original, now = untouched["short"]["ppl"], distilled["short"]["ppl"]
    return {"ppl_original": original, "ppl_distilled": now, "ppl_gap": rounded(now - original)}


def _finetuned(version: Version, before: Metrics, final: Metrics) -> Metrics:
    """Return the figures of the training on long documents, and perplexity before and after."""
    metrics = training_figures(version, "finetune")
    metrics.pop("val_loss", None)  # val_ppl says the same
    metrics["ppl_after"] = last = final["documents"]["ppl"]
    if "documents" in before:
        metrics["ppl_before"] = first = before["documents"]["ppl"]
        metrics["ppl_improvement"] = rounded(first - last)
    if shifted := before.get("double_shift"):
        metrics["double_shift_before"] = shifted["ppl"]
        metrics["double_shift_next_before"] = shifted["next_token_ppl"]
    return metrics
