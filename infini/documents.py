"""Train the memory on long documents: next-token losses, the memory carried along.

Finetuning a replaced layer and training an adapter are both this.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from infini import engine
from infini.checkpoint import Checkpoint, fingerprint
from infini.layers import our_tensors
from infini.params import LongRecipe
from infini.perplexity import UNSCORED, cross_entropy, head_of, next_token, segmented
from infini.pieces import Pieces, shuffled, train_val_sizes
from infini.record import DOCUMENTS, MODELS, TRAINING, Stopwatch
from infini.segments import States, detach, run_segments
from infini.sharding import shard_base
from infini.training import Fit, Loss, adamw, fit


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
) -> Iterator[Loss]:
    """The losses of the chosen documents (indices), chunk after chunk."""
    head, length = head_of(model), documents.tokens.shape[1]
    chunk = chunk_length(recipe, length, segment_length)
    scored = next_token(documents.tokens[chosen], documents.mask[chosen]) != UNSCORED  # (B, T)
    # A process without a document of its own reads one that counts nothing: all step together.
    mine = engine.share(chosen)
    rows = mine if len(mine) else chosen[:1]
    tokens = documents.tokens[rows].to(model.device)
    targets = next_token(tokens, documents.mask[rows].to(model.device) & bool(len(mine)))
    states: States = {}
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

    shard_base(model)
    steps = -(-len(train) // recipe.batch_size)
    if recipe.update == "segment":
        steps *= -(-train.tokens.shape[1] // segment_length)
    trained = our_tensors(model)
    result = fit(
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: shuffled(len(train), recipe.batch_size, seed + epoch),
        lambda chosen: document_losses(model, train, segment_length, recipe, chosen),
        steps=[steps] * recipe.epochs,
        validate=validate if recipe.hold_out else None,
        patience=recipe.patience,
        checkpoint=checkpoint,
        title=title,
    )
    return result, len(train), len(val) if recipe.hold_out else 0


def train_version(
    model: PreTrainedModel,
    version: str,
    recipe: LongRecipe,
    segment_length: int,
    seed: int,
    inputs: list[Path],
) -> None:
    """Train a version's model on the prepared documents, and write it with its curve and time.

    inputs: what the model was made from, besides the base.
    """
    watch = Stopwatch(f"{version}-finetune")
    settings = [seed, segment_length, recipe.model_dump(), model.infini_config]
    key = fingerprint(settings, [*inputs, DOCUMENTS])
    checkpoint = Checkpoint(f"{version}-finetune", key)
    result, train, val = train_on_documents(
        model, recipe, segment_length, seed, checkpoint, f"{version} finetune"
    )
    if not engine.is_main():
        return
    model.save_pretrained(MODELS / version / "finetune")
    result.write(TRAINING / version / "finetune", train, val)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()
