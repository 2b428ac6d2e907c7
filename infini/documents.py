"""Train the memory on long documents: next-token losses, the memory carried along.

Finetuning a replaced layer and training an adapter are both this.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini import engine
from infini.checkpoint import Checkpoint, fingerprint
from infini.layers import our_tensors
from infini.losses import UNSCORED, cross_entropy, head_of, next_token, token_after_next
from infini.params import LongRecipe
from infini.perplexity import double_shift, segmented
from infini.pieces import Pieces, shuffled, train_val_sizes
from infini.record import DOCUMENTS
from infini.segments import States, detach, run_segments
from infini.sharding import shard_base
from infini.training import Loss, adamw, fit
from infini.versions import Trained


def chunk_length(recipe: LongRecipe, document_length: int, segment_length: int) -> int:
    """Tokens between two detachments of the memory: gradient flows back within a chunk only."""
    if recipe.bptt_segments is None:
        return document_length
    return (recipe.bptt_segments + 1) * segment_length


def document_losses(
    model: PreTrainedModel,
    documents: Pieces,
    segment_length: int,
    recipe: LongRecipe,
    chosen: Tensor,
    before: Tensor | None = None,
) -> Iterator[Loss]:
    """The losses of the chosen documents (indices), chunk after chunk.

    before: documents whose memory they start with (an audit), dealt out over the chosen; None:
    with an empty one.
    """
    head, length = head_of(model), documents.tokens.shape[1]
    chunk = chunk_length(recipe, length, segment_length)
    # A process without a document of its own reads one that counts nothing: all step together.
    mine = engine.share(chosen)
    rows = mine if len(mine) else chosen[:1]
    tokens, mask = documents.tokens, documents.mask
    scored = _targets(tokens[chosen], mask[chosen], recipe, segment_length) != UNSCORED  # (B, T)
    targets = _targets(tokens[rows], mask[rows] & bool(len(mine)), recipe, segment_length)
    tokens, targets = tokens[rows].to(model.device), targets.to(model.device)
    states: States = {}
    if before is not None:
        earlier = before[torch.arange(len(chosen)) % len(before)]
        earlier = engine.share(earlier) if len(mine) else earlier[:1]
        whole = documents.tokens[earlier, : length // segment_length * segment_length]
        with torch.no_grad(), engine.autocast():
            _, states = run_segments(model, whole.to(model.device), segment_length)
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        with engine.autocast():
            hidden, states = run_segments(model, tokens[:, part], segment_length, states)
            nats = cross_entropy(hidden, head, targets[:, part])
        count = int(scored[:, part].sum())
        if recipe.update == "segment":
            yield Loss(nats.sum(), count, count)
        else:
            yield Loss(nats.sum(), count, int(scored.sum()), step=start + chunk >= length)
        states = detach(states)


def _targets(tokens: Tensor, mask: Tensor, recipe: LongRecipe, segment_length: int) -> Tensor:
    if recipe.label_shift == 2:
        return token_after_next(tokens, mask, segment_length)
    return next_token(tokens, mask)


def train_on_documents(
    model: PreTrainedModel,
    recipe: LongRecipe,
    segment_length: int,
    seed: int,
    title: str,
) -> Trained:
    """Train what is ours in `model`, in place, on the prepared documents."""
    sizes = (None, None) if recipe.documents is None else train_val_sizes(recipe.documents)
    train, val = (
        Pieces.load(DOCUMENTS / f"{split}.parquet", limit)
        for split, limit in zip(("train", "val"), sizes, strict=True)
    )
    if not recipe.hold_out:
        train += val

    def batches(epoch: int) -> list[tuple[Tensor, Tensor | None]]:
        order = list(shuffled(len(train), recipe.batch_size, seed + epoch))
        before = [None, *order[:-1]] if recipe.carry_memory else [None] * len(order)
        return list(zip(order, before, strict=True))

    def validate() -> float:
        protocol = segmented if recipe.label_shift == 1 else double_shift
        score = protocol(model, val, segment_length)
        return score.total / score.tokens

    shard_base(model)
    steps = -(-len(train) // recipe.batch_size)
    if recipe.update == "segment":
        steps *= -(-train.tokens.shape[1] // segment_length)
    trained = our_tensors(model)
    settings = [seed, segment_length, recipe.model_dump(), model.infini_config]
    key = fingerprint(settings, [DOCUMENTS], trained)
    checkpoint = Checkpoint(title.replace(" ", "-"), key)
    result = fit(
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        batches,
        lambda batch: document_losses(model, train, segment_length, recipe, *batch),
        steps=[steps] * recipe.epochs,
        validate=validate if recipe.hold_out else None,
        patience=recipe.patience,
        checkpoint=checkpoint,
        title=title,
    )
    return Trained(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
