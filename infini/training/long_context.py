"""Train the memory on long documents: next-token losses, the memory carried along.

Finetuning replaced layers, training an adapter and training a version's control are all this.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.corpus.haystacks import Facts, questioned
from infini.corpus.pieces import Pieces, shuffled, train_val_sizes
from infini.evaluation import perplexity
from infini.evaluation.losses import UNSCORED, cross_entropy, next_token
from infini.model.architectures import output_head, vocabulary_size
from infini.model.base import load_tokenizer
from infini.model.forward import forward_documents, memory_mode, window_override
from infini.model.modules import frozen_layers, infini_parameters
from infini.model.segmented.run import LayerStates, detach_states
from infini.paths import DOCUMENTS, TEACHER
from infini.training.checkpoint import Checkpoint, fingerprint
from infini.training.config import DocumentRecipe
from infini.training.loop import Loss, Task, adamw, fit
from infini.training.seeds import TrainingResult, TrainingRun
from infini.training.teacher import Teacher
from infini.training.teacher_loss import teacher_divergence


@dataclass(frozen=True)
class Batch:
    """Documents of a step, and how they are read."""

    rows: Tensor  # (B,), indices
    window: int | None = None  # None: the layer's own
    question_seed: int | None = None  # of its retrieval questions; None: no questions


class Documents:
    """How a model is trained on long documents; audits override what the research log did.

    facts: facts that retrieval questions are about, if the recipe has any.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: Pieces,
        segment_length: int,
        recipe: DocumentRecipe,
        teacher: Teacher | None = None,
        facts: Facts | None = None,
    ):
        self.model, self.text, self.teacher, self.facts = model, text, teacher, facts
        self.segment_length, self.recipe = segment_length, recipe

    def batches(self, seed: int) -> list[Batch]:
        """Those of an epoch, in the order that `seed` gives."""
        order = shuffled(len(self.text), self.recipe.batch_size, seed)
        draw, count = Random(seed), len(order)
        windows = draw.choices(self.recipe.drawn_windows or [None], k=count)
        filled = set(
            draw.sample(range(count), int(self.recipe.question_share * count + draw.random()))
        )
        return [
            Batch(rows, window, seed * count + i if i in filled else None)
            for i, (rows, window) in enumerate(zip(order, windows, strict=True))
        ]

    def filled(self, batch: Batch) -> Pieces:
        """All documents, those of the batch with facts in them, of which the answers count."""
        assert self.facts is not None
        assert batch.question_seed is not None
        text, generator = self.text, torch.Generator().manual_seed(batch.question_seed)
        tokens, mask = text.tokens.clone(), text.mask.clone()
        apart = self.recipe.exact_context(self.segment_length, batch.window)
        for row in batch.rows.tolist():
            real = text.mask[row]
            tokens[row, real], mask[row, real] = questioned(
                tokens[row, real], self.facts, apart, generator
            )
        return replace(text, tokens=tokens, mask=mask)

    def targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """What every position of (B, T) tokens is to predict; UNSCORED where nothing."""
        return next_token(tokens, mask)

    def start(self, chosen: Tensor) -> LayerStates:
        """The memory that this process's part of a batch starts with: empty."""
        return {}

    def validate(self, val: Pieces) -> float:
        """Nats a token of other documents."""
        return perplexity.score_documents(self.model, val, self.segment_length).mean

    def companions(self, rows: Tensor) -> Tensor:
        """Documents that are read beside these, and not scored: none."""
        return rows[:0]

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        steps = -(-len(self.text) // self.recipe.batch_size)
        if self.recipe.steps_by_segment:
            steps *= -(-self.text.tokens.shape[1] // self.chunk)
        return steps

    @property
    def chunk(self) -> int:
        """Tokens between two detachments of the memory: gradient flows back within a chunk."""
        return self.recipe.chunk(self.segment_length) or self.text.tokens.shape[1]

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """The losses of a batch, chunk after chunk."""
        text = self.text if batch.question_seed is None else self.filled(batch)
        tokens, mask, length = text.tokens, text.mask, text.tokens.shape[1]
        rows, idle = own_rows(batch.rows)
        scored = self.targets(tokens[batch.rows], mask[batch.rows]) != UNSCORED  # (B, T)
        targets = self.targets(tokens[rows], mask[rows] & (not idle)).to(self.model.device)
        tokens = tokens[torch.cat([rows, self.companions(rows)])].to(self.model.device)
        states = self.start(batch.rows)
        teacher = None if batch.question_seed is not None else self.teacher
        for start in range(0, length, self.chunk):
            part = slice(start, start + self.chunk)
            said = None if teacher is None else Teacher(*(x[rows, part] for x in teacher))
            with processes.autocast(), window_override(self.model, batch.window):
                hidden, states = forward_documents(
                    self.model, tokens[:, part], self.segment_length, states
                )
                nats = self.nats(hidden[: len(rows)], targets[:, part], said)
            count = int(scored[:, part].sum())
            if self.recipe.steps_by_segment:
                yield Loss(nats.sum(), count, count)
            else:
                last = start + self.chunk >= length
                kind = "text" if batch.question_seed is None else "answers"
                yield Loss(nats.sum(), count, int(scored.sum()), last, kind)
            states = detach_states(states)

    def nats(self, hidden: Tensor, targets: Tensor, said: Teacher | None) -> Tensor:
        """The loss of every token, (b, t), zero where UNSCORED.

        hidden: (b, t, d). said: what the teacher says of these tokens; None: cross-entropy.
        """
        head = output_head(self.model)
        if said is None:
            return cross_entropy(hidden, head, targets)
        nats = teacher_divergence(hidden, head, *(x.to(hidden.device) for x in said))
        return nats * (targets != UNSCORED)


class Control(Documents):
    """Every document reads the memory of another, which is read beside it.

    What such a training gains it has learnt of the text, not read in the memory.
    """

    def validate(self, val: Pieces) -> float:
        text = val if len(val) > 1 else val + self.text.first(1)  # one alone needs another
        score = perplexity.score_documents(self.model, text, self.segment_length, "swapped")
        nats, scored = score.nats[: len(val)], score.scored[: len(val)]
        return nats.double().sum().item() / int(scored.sum())

    def companions(self, rows: Tensor) -> Tensor:
        """The next ones; none for an even number, of which one half reads the other's memory."""
        return (rows + 1) % len(self.text) if len(rows) % 2 else rows[:0]


def linear(steps: int, step: int) -> float:
    """What multiplies the learning rates at a step of so many, counted from 0."""
    warmup = -(-steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 1 - 0.9 * (step - warmup + 1) / max(1, steps - warmup)


def own_rows(chosen: Tensor) -> tuple[Tensor, bool]:
    """What this process reads of a batch, and whether it counts nothing.

    A process without a document of its own reads another's: all step together.
    """
    mine = processes.share(chosen)
    return (mine, False) if len(mine) else (chosen[:1], True)


def train_control(
    model: PreTrainedModel, recipe: DocumentRecipe, segment_length: int, job: TrainingRun
) -> TrainingResult:
    """`train_on_documents`, the memory always that of another document."""
    with memory_mode(model, "swapped"):
        return train_on_documents(model, recipe, segment_length, job, Control)


def train_on_documents(
    model: PreTrainedModel,
    recipe: DocumentRecipe,
    segment_length: int,
    job: TrainingRun,
    kind: type[Documents] = Documents,
) -> TrainingResult:
    """Train what is ours in `model`, in place, on the prepared documents.

    InputError: they are too short for what is put into them.
    """
    sizes = (None, None) if recipe.documents is None else train_val_sizes(recipe.documents)
    train, val = (
        Pieces.load(DOCUMENTS / f"{split}.parquet", limit).within(vocabulary_size(model))
        for split, limit in zip(("train", "val"), sizes, strict=True)
    )
    if not recipe.hold_out:
        train += val
    inputs, teacher = [DOCUMENTS], None
    if recipe.objective == "distillation":
        inputs, teacher = [DOCUMENTS, TEACHER], Teacher.load(TEACHER, len(train))
    if recipe.length is not None:
        train = train.shortened(recipe.length)
    processes.deal_out(frozen_layers(model))
    facts = None
    if recipe.question_share:
        name, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
        facts = Facts(load_tokenizer(name, commit))
    documents = kind(model, train, segment_length, recipe, teacher, facts)
    steps = documents.steps * recipe.epochs
    trained = infini_parameters(model)
    settings = [job.seed, segment_length, recipe.model_dump(), model.infini_config, kind.__name__]
    checkpoint = Checkpoint(job.name, fingerprint(settings, inputs, trained))
    task = Task(
        job.title,
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: documents.batches(job.seed + epoch),
        documents.losses,
        [documents.steps] * recipe.epochs,
        validate=(lambda: documents.validate(val)) if recipe.hold_out else None,
        patience=recipe.patience,
        schedule=partial(linear, steps) if recipe.schedule == "linear" else lambda step: 1.0,
    )
    result = fit(task, checkpoint)
    return TrainingResult(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
