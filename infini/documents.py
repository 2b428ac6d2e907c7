"""Train the memory on long documents: next-token losses, the memory carried along.

Finetuning a replaced layer and training an adapter are both this.
"""

from collections.abc import Iterator

from transformers import PreTrainedModel

from infini.checkpoint import Checkpoint
from infini.layers import our_tensors
from infini.params import LongRecipe
from infini.perplexity import UNSCORED, cross_entropy, head_of, next_token, segmented
from infini.pieces import Pieces, train_val_sizes
from infini.record import DOCUMENTS
from infini.segments import States, detach, run_segments
from infini.training import Fit, Loss, adamw, fit


def chunk_length(recipe: LongRecipe, document_length: int, segment_length: int) -> int:
    """Tokens between two detachments of the memory: gradient flows back within a chunk only."""
    if recipe.bptt_segments is None:
        return document_length
    return (recipe.bptt_segments + 1) * segment_length


def document_losses(
    model: PreTrainedModel, documents: Pieces, segment_length: int, recipe: LongRecipe, seed: int
) -> Iterator[Loss]:
    """An epoch's losses, chunk after chunk, in the order of documents that `seed` gives."""
    head = head_of(model)
    for batch in documents.shuffled(recipe.batch_size, seed):
        targets = next_token(batch.tokens, batch.mask)
        length = batch.tokens.shape[1]
        chunk = chunk_length(recipe, length, segment_length)
        scored = (targets != UNSCORED).sum().item()
        states: States = {}
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            hidden, states = run_segments(model, batch.tokens[:, part], segment_length, states)
            nats = cross_entropy(hidden, head, targets[:, part])
            count = int((targets[:, part] != UNSCORED).sum())
            if recipe.update == "segment":
                yield Loss(nats.sum() / count, count)
            else:
                last = start + chunk >= length
                yield Loss(nats.sum() / count, count, weight=count / scored, step=last)
            states = detach(states)


def train_on_documents(
    model: PreTrainedModel,
    recipe: LongRecipe,
    segment_length: int,
    seed: int,
    checkpoint: Checkpoint,
    title: str,
) -> tuple[Fit, int, int]:
    """Train what is ours in `model` on the prepared documents.

    Returns the fit, and how many documents trained and how many validated.
    """
    sizes = (None, None) if recipe.documents is None else train_val_sizes(recipe.documents)
    train, val = (
        Pieces.load(DOCUMENTS / f"{split}.parquet", limit)
        for split, limit in zip(("train", "val"), sizes, strict=True)
    )
    if not recipe.hold_out:
        train += val

    def validate() -> float:
        score = segmented(model, val, segment_length)
        return score.nats / score.tokens

    length = train.tokens.shape[1]
    steps = -(-len(train) // recipe.batch_size)
    if recipe.update == "segment":
        steps *= -(-length // segment_length)
    trained = our_tensors(model)
    result = fit(
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: document_losses(model, train, segment_length, recipe, seed + epoch),
        steps=[steps] * recipe.epochs,
        validate=validate if recipe.hold_out else None,
        patience=recipe.patience,
        checkpoint=checkpoint,
        title=title,
    )
    return result, len(train), len(val) if recipe.hold_out else 0
