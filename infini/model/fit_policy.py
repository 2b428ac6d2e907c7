"""Fits a retention policy's tensors to texts: `infini.fit_policy`."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import RETENTION_BLOCK
from infini.console.progress import progress
from infini.errors import InputError
from infini.memory.eviction import (
    AdaKV,
    FutureRegression,
    Learned,
    Oracle,
    QueryStatistics,
    RetentionPolicy,
    Rotate,
    policy_by_name,
    policy_names,
)
from infini.model.architectures import context_length
from infini.model.base import tokenizer_of
from infini.model.forward import policy_override
from infini.model.future_attention import future_attention
from infini.model.modules import retained_modules
from infini.model.window.attention import evaluation_mode
from infini.model.window.full_attention import LayerInputs, record_full_attention

MAX_TOKENS = 4096  # of a piece of text: full attention costs its square
FIT_DOCUMENTS = 4  # training documents that the pipeline fits policies to


class QueryRecorder:
    """Sums of every layer's queries and of their outer products."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_queries = 0
        self.layers: dict[int, tuple[int, Rotate | None]] = {}

    def record(self, inputs: LayerInputs) -> None:
        """Add the queries of a layer."""
        q = (inputs.q * inputs.spec.scale).transpose(0, 1).flatten(1, 2).float()  # (H, B·T, D)
        first, second = q.sum(1), q.mT @ q
        if inputs.layer_index in self.sums:
            known = self.sums[inputs.layer_index]
            first, second = known[0] + first, known[1] + second
        self.sums[inputs.layer_index] = first, second
        self.layers[inputs.layer_index] = inputs.k.shape[1], inputs.spec.rotate

    def statistics(self, layer: int) -> QueryStatistics:
        """Return the moments of a layer's queries."""
        first, second = self.sums[layer]
        kv_heads, rotate = self.layers[layer]
        n = self.num_queries
        return QueryStatistics(first / n, second / n, kv_heads, rotate)


@torch.no_grad()
def fit_policy(
    model: PreTrainedModel,
    texts: Sequence[str] | Sequence[Tensor] | Mapping[str, str],
    tokenizer: Tokenizer | None = None,
) -> PreTrainedModel:
    """Fit the tensors of a model's retention policy to texts, in place.

    "learned" and "learned_no_attention" know which pairs later queries attend to,
    "expected_attention" and "q_filter" the queries that a layer usually makes. Four texts of 4,096
    tokens are enough; they are read by the base's full attention, in pieces of its context, at most
    4,096 tokens, and for the learned policies through the model's window too. The tensors are saved
    with the model.

    Args:
        model: A model with `method="window"` and `retained`.
        texts: Texts, or their tokens, (T,) each. Not those that the model is evaluated on.
        tokenizer: The base's; None: it is loaded from where the base was.

    Returns:
        `model` itself.

    Raises:
        InputError: The model has no retained pairs, its policy has nothing to fit, there is no
            text, or for a learned policy none that is longer than window, sinks and a block of
            tokens.

    Examples:
        >>> infini.retrofit(model, "window", retained=128, policy="learned")
        >>> infini.fit_policy(model, texts)
    """
    layers = retained_modules(model)
    if not layers:
        raise InputError(
            'fit_policy needs a model with retained pairs: infini.retrofit(model, "window", '
            "retained=…, policy=…)"
        )
    if isinstance(texts, Mapping):
        texts = list(texts.values())
    if isinstance(texts, str) or not isinstance(texts, Sequence | Tensor) or not len(texts):
        raise InputError("texts must be a list of ≥ 1 text")
    policy = next(iter(layers.values())).policy
    if not policy.needs_fit:
        names = [name for name in policy_names() if policy_by_name(name).needs_fit]
        raise InputError(
            f"policy {policy.name!r} has nothing to fit; these have: {', '.join(names)}"
        )
    pieces = _pieces(model, texts, tokenizer)
    scored_by = policy.policy if isinstance(policy, AdaKV) else policy
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        if isinstance(scored_by, Learned):
            tensors = _fit_to_future(model, scored_by, pieces)
        else:
            tensors = _fit_to_queries(model, policy, pieces)
    for index, retained in layers.items():
        if tensors[index].keys() != retained.policy_weights.keys():
            raise InputError(
                f"policy {policy.name!r}: fit must return the tensors of weight_shapes "
                f"({', '.join(retained.policy_weights)}), got {', '.join(tensors[index]) or 'none'}"
            )
        for name, tensor in tensors[index].items():
            own = retained.policy_weights[name]
            if tensor.shape != own.shape or not tensor.isfinite().all():
                raise InputError(
                    f"policy {policy.name!r}: fit must return finite numbers of the shapes of "
                    f"weight_shapes: {name!r} is {tuple(own.shape)}, got {tuple(tensor.shape)}"
                )
            own.copy_(tensor)
    return model


def _fit_to_queries(
    model: PreTrainedModel, policy: RetentionPolicy, pieces: list[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Return a policy's tensors by layer, fitted to the queries of full attention."""
    recorder = QueryRecorder()
    for piece in progress(pieces, "fit policy"):
        record_full_attention(model, piece[None].to(model.device), recorder.record)
        recorder.num_queries += len(piece)
    return {layer: policy.fit(recorder.statistics(layer)) for layer in retained_modules(model)}


def _fit_to_future(
    model: PreTrainedModel, policy: Learned, pieces: list[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Return a policy's tensors by layer, fitted to the attention that pairs get afterwards."""
    regression = FutureRegression(policy)
    for piece in progress(pieces, "fit policy"):
        tokens = piece[None].to(model.device)
        regression.oracle = Oracle(future_attention(model, tokens))
        with policy_override(model, regression):
            model.get_decoder()(input_ids=tokens, use_cache=False)
    if not regression.sums:
        longest = max(map(len, pieces))
        raise InputError(
            f"texts must be longer than window, sinks and a block of {RETENTION_BLOCK} tokens, the "
            f"longest has {longest} tokens"
        )
    return {layer: regression.weights(layer) for layer in retained_modules(model)}


def _pieces(
    model: PreTrainedModel, texts: Sequence[str] | Sequence[Tensor], tokenizer: Tokenizer | None
) -> list[Tensor]:
    """Return the texts' tokens in pieces of at most `MAX_TOKENS`."""
    size = min(MAX_TOKENS, context_length(model) or MAX_TOKENS)
    pieces: list[Tensor] = []
    for number, text in enumerate(texts, 1):
        if isinstance(text, str):
            tokenizer = tokenizer or tokenizer_of(model)
            text = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
        if not isinstance(text, Tensor) or text.ndim != 1 or not len(text):
            raise InputError(f"text {number}: must be a text, or its tokens, (T,)")
        if text.is_floating_point() or text.is_complex():
            raise InputError(f"text {number}: tokens must be integers, got {text.dtype}")
        model.get_decoder().check_vocabulary(text)
        pieces += text.split(size)
    return pieces
