"""The metrics of a version: one row of every comparison, the same keys for each.

Training figures come from the training stages; every perplexity is measured here, on
test text, by the protocols of `perplexity`.
"""

import math
from typing import Any

from transformers import PreTrainedModel

from infini import perplexity
from infini.distillation import distillation_error, record_layer
from infini.errors import InputError
from infini.layers import InfiniAdapter, infini_slots
from infini.params import Evaluate
from infini.pieces import Pieces
from infini.record import DOCUMENTS, METRICS, MODELS, SAMPLES, TRAINING, read_json
from infini.sharding import shard_base
from infini.surgery import load, remove

Metrics = dict[str, Any]


class Evaluator:
    """The test text, and the protocols over it."""

    def __init__(self, segment_length: int, protocols: Evaluate):
        self.segment_length = segment_length
        self.protocols = protocols
        self.samples = Pieces.load(
            SAMPLES / "test.parquet", protocols.short.samples, width=segment_length
        )

    def _documents(self, count: int) -> Pieces:
        return Pieces.load(DOCUMENTS / "test.parquet", count)

    def short(self, model: PreTrainedModel) -> Metrics:
        score = perplexity.segmented(model, self.samples, self.segment_length, title="short")
        return score.metrics()

    def segmented(self, model: PreTrainedModel) -> Metrics:
        documents = self._documents(self.protocols.segmented.documents)
        return perplexity.segmented(
            model, documents, self.segment_length, title="segmented"
        ).metrics()

    def memory_off(self, model: PreTrainedModel) -> Metrics:
        documents = self._documents(self.protocols.memory_off.documents)
        return perplexity.segmented(
            model, documents, self.segment_length, memory=False, title="memory off"
        ).metrics()

    def double_shift(self, model: PreTrainedModel) -> Metrics:
        documents = self._documents(self.protocols.double_shift.documents)
        score = perplexity.double_shift(model, documents, self.segment_length, title="double shift")
        return {"ppl": score.metrics()["ppl"]}  # the bytes of a token after next mean nothing

    def sliding(self, model: PreTrainedModel) -> Metrics:
        recipe = self.protocols.sliding
        longest = model.config.get_text_config().max_position_embeddings
        if recipe.context > longest:
            raise InputError(
                f"params.yaml: evaluate.sliding.context: the base reads {longest} tokens at most, "
                f"got {recipe.context}"
            )
        documents = self._documents(recipe.documents)
        score = perplexity.sliding(model, documents, recipe.context, recipe.stride, title="sliding")
        return score.metrics()


def evaluate_base(model: PreTrainedModel, evaluator: Evaluator) -> Metrics:
    """The untouched base: what every version is compared with, and its full-context ceiling."""
    names = ("short", "segmented", "sliding", "double_shift")
    shard_base(model)
    return {name: getattr(evaluator, name)(model) for name in names}


def evaluate_version(base: PreTrainedModel, version: str, evaluator: Evaluator) -> Metrics:
    """A version's training, step by step, then its final model by every protocol."""
    untouched = read_json(METRICS / "base.json")
    before = untouched
    metrics: Metrics = {}
    if (MODELS / version / "distill").is_dir():
        metrics["distill"], before = _distilled(base, version, evaluator, untouched)
    model = shard_base(load(MODELS / version / "finetune", base))
    final = {
        name: getattr(evaluator, name)(model)
        for name in ("short", "segmented", "memory_off", "double_shift")
    }
    metrics["finetune"] = _finetuned(version, before, final)
    for index, slot in infini_slots(model).items():
        if isinstance(slot, InfiniAdapter):
            metrics.setdefault("alpha", {})[f"layer{index}"] = round(slot.alpha.item(), 4)
    return metrics | final


def _distilled(
    base: PreTrainedModel, version: str, evaluator: Evaluator, untouched: Metrics
) -> tuple[Metrics, Metrics]:
    """The distillation's figures, and the distilled model's own by protocol."""
    folder = MODELS / version / "distill"
    model = shard_base(load(folder, base))
    ((index, layer),) = infini_slots(model).items()
    scores = {n: getattr(evaluator, n)(model) for n in ("short", "segmented", "double_shift")}
    teacher = record_layer(remove(model), index, evaluator.samples)
    summary = read_json(TRAINING / version / "distill.json")
    original, distilled = untouched["short"]["ppl"], scores["short"]["ppl"]
    figures = {
        **{name: _rounded(value) for name, value in summary.items()},
        "test_loss": _rounded(distillation_error(layer, teacher)),
        "ppl_original": original,
        "ppl_distilled": distilled,
        "ppl_gap": round(distilled - original, 4),
    }
    return figures, scores


def _finetuned(version: str, before: Metrics, final: Metrics) -> Metrics:
    """The long-document training's figures, perplexity on test documents before and after."""
    summary = read_json(TRAINING / version / "finetune.json")
    losses = {k: v for k, v in summary.items() if k.endswith("_loss")}
    first, last = before["segmented"]["ppl"], final["segmented"]["ppl"]
    return {
        **{name: value for name, value in summary.items() if name not in losses},
        **{k.replace("_loss", "_ppl"): round(math.exp(v), 4) for k, v in losses.items()},
        "ppl_before": first,
        "ppl_after": last,
        "ppl_improvement": round(first - last, 4),
        "double_shift_before": before["double_shift"]["ppl"],
    }


def _rounded(value: float) -> float:
    """Six significant digits: what tables print, and what reruns reproduce."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
