"""Training of the memory on long documents by next-token losses.

Finetuning of replaced layers, training of adapters and of controls are all this.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini import processes
from infini.corpus.haystacks import FactSampler, with_questions
from infini.corpus.pieces import Pieces, shuffled, train_val_sizes
from infini.evaluation import perplexity
from infini.evaluation.losses import UNSCORED, cross_entropy, next_token
from infini.model.architectures import output_head, vocabulary_size
from infini.model.base import load_tokenizer
from infini.model.fit_policy import FIT_DOCUMENTS, fit_policy
from infini.model.forward import forward_documents, memory_mode, window_override
from infini.model.modules import (
    frozen_layers,
    parameter_groups,
    retained_modules,
    segmented_layers,
    trained_parameters,
)
from infini.model.segmented.layers import InfiniAdapter
from infini.model.segmented.run import LayerStates, detach_states
from infini.paths import DOCUMENTS, TEACHER
from infini.training.checkpoint import Checkpoint, fingerprint
from infini.training.config import DocumentRecipe
from infini.training.loop import Loss, Task, adamw, fit
from infini.training.seeds import TrainingResult, TrainingRun
from infini.training.teacher import Teacher
from infini.training.teacher_loss import teacher_divergence


@dataclass(frozen=True)
class DocumentBatch:
    """Documents of an optimizer step, and how they are read."""

    rows: Tensor  # (B,), indices of documents
    window: int | None = None  # tokens; None: the layer's own
    question_seed: int | None = None  # of its retrieval questions; None: no questions


class DocumentTraining:
    """Batches and losses of a training on long documents. Audits override parts of it.

    Args:
        model: A retrofitted model.
        text: Training documents.
        segment_length: Tokens per segment.
        recipe: Settings of the training.
        teacher: Log-probabilities to train on; None: next tokens.
        facts: What synthetic retrieval questions are about; None: no questions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: Pieces,
        segment_length: int,
        recipe: DocumentRecipe,
        teacher: Teacher | None = None,
        facts: FactSampler | None = None,
    ):
        self.model, self.text, self.teacher, self.facts = model, text, teacher, facts
        self.segment_length, self.recipe = segment_length, recipe

    def batches(self, seed: int) -> list[DocumentBatch]:
        """Return the batches of an epoch; `seed` decides their order, windows and questions."""
        order = shuffled(len(self.text), self.recipe.batch_size, seed)
        random, count = Random(seed), len(order)
        windows = random.choices(self.recipe.drawn_windows or [None], k=count)
        indices = set(
            random.sample(range(count), int(self.recipe.question_share * count + random.random()))
        )
        return [
            DocumentBatch(rows, window, seed * count + i if i in indices else None)
            for i, (rows, window) in enumerate(zip(order, windows, strict=True))
        ]

    def put_questions(self, batch: DocumentBatch) -> Pieces:
        """Put facts and questions into the batch's documents; their mask is of answers alone."""
        assert self.facts is not None
        assert batch.question_seed is not None
        text, generator = self.text, torch.Generator().manual_seed(batch.question_seed)
        tokens, mask = text.tokens.clone(), text.mask.clone()
        distance = self.recipe.exact_context(self.segment_length, batch.window)
        for row in batch.rows.tolist():
            real = text.mask[row]
            tokens[row, real], mask[row, real] = with_questions(
                tokens[row, real], self.facts, distance, generator
            )
        return replace(text, tokens=tokens, mask=mask)

    def targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the target of every position of (B, T) tokens; UNSCORED: none."""
        return next_token(tokens, mask)

    def initial_states(self, chosen: Tensor) -> LayerStates:
        """Return the memory that this process's documents start with: empty."""
        return {}

    def validate(self, val: Pieces) -> float:
        """Return the nats per token of validation documents."""
        return perplexity.score_documents(self.model, val, self.segment_length).mean

    def paired_rows(self, rows: Tensor) -> Tensor:
        """Return documents that are read together with these but not scored: none."""
        return rows[:0]

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        steps = -(-len(self.text) // self.recipe.batch_size)
        if self.recipe.steps_by_segment:
            steps *= -(-self.text.tokens.shape[1] // self.chunk)
        return steps

    @property
    def chunk(self) -> int:
        """Tokens between detachments of the memory; gradient flows within a chunk."""
        return self.recipe.chunk(self.segment_length) or self.text.tokens.shape[1]

    def losses(self, batch: DocumentBatch) -> Iterator[Loss]:
        """Yield the losses of a batch, one per chunk."""
        text = self.text if batch.question_seed is None else self.put_questions(batch)
        tokens, mask, length = text.tokens, text.mask, text.tokens.shape[1]
        rows, idle = own_rows(batch.rows)
        scored = self.targets(tokens[batch.rows], mask[batch.rows]) != UNSCORED  # (B, T)
        targets = self.targets(tokens[rows], mask[rows] & (not idle)).to(self.model.device)
        tokens = tokens[torch.cat([rows, self.paired_rows(rows)])].to(self.model.device)
        states = self.initial_states(batch.rows)
        teacher = None if batch.question_seed is not None else self.teacher
        for start in range(0, length, self.chunk):
            part = slice(start, start + self.chunk)
            log_probs = None if teacher is None else Teacher(*(x[rows, part] for x in teacher))
            with processes.autocast(), window_override(self.model, batch.window):
                hidden, states = forward_documents(
                    self.model, tokens[:, part], self.segment_length, states
                )
                nats = self.nats(hidden[: len(rows)], targets[:, part], log_probs)
            count = int(scored[:, part].sum())
            if self.recipe.steps_by_segment:
                yield Loss(nats.sum(), count, count)
            else:
                last = start + self.chunk >= length
                kind, weight = "text", 1.0
                if batch.question_seed is not None:
                    kind, weight = "answers", self.recipe.question_weight
                yield Loss(nats.sum(), count, int(scored.sum()) / weight, last, kind)
            states = detach_states(states)

    def nats(self, hidden: Tensor, targets: Tensor, teacher_log_probs: Teacher | None) -> Tensor:
        """Compute the loss of every token.

        Args:
            hidden: Last hidden states, (b, t, d).
            targets: (b, t), UNSCORED where nothing is scored.
            teacher_log_probs: The teacher's of these tokens; None: cross-entropy.

        Returns:
            (b, t), zero where UNSCORED.
        """
        head = output_head(self.model)
        if teacher_log_probs is None:
            return cross_entropy(hidden, head, targets)
        nats = teacher_divergence(hidden, head, *(x.to(hidden.device) for x in teacher_log_probs))
        return nats * (targets != UNSCORED)


class ControlTraining(DocumentTraining):
    """Shuffled-memory control: every document reads the memory of another one.

    What this training gains is learned from the text, not read from the memory.
    """

    def validate(self, val: Pieces) -> float:
        text = val if len(val) > 1 else val + self.text.first(1)  # one document needs another
        score = perplexity.score_documents(self.model, text, self.segment_length, "swapped")
        nats, scored = score.nats[: len(val)], score.scored[: len(val)]
        return nats.double().sum().item() / int(scored.sum())

    def paired_rows(self, rows: Tensor) -> Tensor:
        """Return the next documents for an odd number of rows; an even number pairs up."""
        return (rows + 1) % len(self.text) if len(rows) % 2 else rows[:0]


def linear_schedule(steps: int, step: int) -> float:
    """Return the factor of the learning rates at `step`, which counts from 0, of `steps`.

    It rises linearly during the first fifth, then falls to a tenth.
    """
    warmup = -(-steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 1 - 0.9 * (step - warmup + 1) / max(1, steps - warmup)


def own_rows(chosen: Tensor) -> tuple[Tensor, bool]:
    """Return the documents that this process reads of a batch, and whether it scores none.

    A process without a document reads another's, since all processes step together.
    """
    own = processes.local_share(chosen)
    return (own, False) if len(own) else (chosen[:1], True)


def fit_retention_policy(
    model: PreTrainedModel, recipe: DocumentRecipe, segment_length: int
) -> None:
    """Fit the retention policy to training documents, in place, if it has tensors.

    Where the training asks questions, half of the documents have some, so that a learned policy
    retains what may be asked for.
    """
    policies = [retained.policy for retained in retained_modules(model).values()]
    if not any(policy.needs_fit for policy in policies):
        return
    train = Pieces.load(DOCUMENTS / "train.parquet").unpadded()
    texts = train[:FIT_DOCUMENTS]
    if recipe.question_share:
        facts, generator = fact_sampler(model), torch.Generator().manual_seed(0)
        distance = recipe.exact_context(segment_length, None)
        for text in train[-FIT_DOCUMENTS:]:
            texts.append(with_questions(text, facts, distance, generator)[0])
    fit_policy(model, texts)


def freeze_alpha(model: PreTrainedModel) -> None:
    """Keep the adapters' α as it is during training."""
    for layer in segmented_layers(model).values():
        if isinstance(layer, InfiniAdapter):
            layer.alpha.requires_grad_(False)


def fact_sampler(model: PreTrainedModel) -> FactSampler:
    """Return what synthetic retrieval questions are about, in the tokens of a model."""
    commit = getattr(model.config, "_commit_hash", None)
    return FactSampler(load_tokenizer(model.name_or_path, commit))


def train_control(
    model: PreTrainedModel, recipe: DocumentRecipe, segment_length: int, run: TrainingRun
) -> TrainingResult:
    """Train a control: `train_on_documents` with another document's memory."""
    with memory_mode(model, "swapped"):
        return train_on_documents(model, recipe, segment_length, run, ControlTraining)


def train_on_documents(
    model: PreTrainedModel,
    recipe: DocumentRecipe,
    segment_length: int,
    run: TrainingRun,
    kind: type[DocumentTraining] = DocumentTraining,
) -> TrainingResult:
    """Train the retrofit's parameters, in place, on the prepared documents.

    Args:
        model: A retrofitted model.
        recipe: Settings of the training.
        segment_length: Tokens per segment.
        run: Seed and names.
        kind: Batches and losses.

    Returns:
        The trained model.

    Raises:
        InputError: If documents are too short for the questions put into them.
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
    processes.shard_layers(frozen_layers(model))
    facts = fact_sampler(model) if recipe.question_share else None
    documents = kind(model, train, segment_length, recipe, teacher, facts)
    steps = documents.steps * recipe.epochs
    trained = trained_parameters(model)
    settings = [run.seed, segment_length, recipe.model_dump(), model.infini_config, kind.__name__]
    checkpoint = Checkpoint(run.checkpoint_name, fingerprint(settings, inputs, trained))
    task = Task(
        run.title,
        trained,
        [adamw(*parameter_groups(model), recipe.lr, recipe.gate_lr)],
        lambda epoch: documents.batches(run.seed + epoch),
        documents.losses,
        [documents.steps] * recipe.epochs,
        validate=(lambda: documents.validate(val)) if recipe.hold_out else None,
        patience=recipe.patience,
        schedule=partial(linear_schedule, steps)
        if recipe.schedule == "linear"
        else lambda step: 1.0,
    )
    result = fit(task, checkpoint)
    return TrainingResult(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
