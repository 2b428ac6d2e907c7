"""Pretraining of the embedded base: a byte-level BPE and a GPT-NeoX in Pythia's proportions.

Parallel residual, rotary over 25 % of a head, untied head (arXiv 2304.01373,
section 2). Documents are laid end to end with an end-of-text token between them.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from infini import processes
from infini.corpus.splits import Text
from infini.training.checkpoint import Checkpoint
from infini.training.loop import Fit, Loss, Task, fit
from infini.training.muon import Muon
from infini.training.pretraining_config import Pretrain

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: list[Text], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which decodes any text to the same bytes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((t.text for t in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
    )


def new_model(recipe: Pretrain) -> GPTNeoXForCausalLM:
    """Build the model; both projections into the residual stream start at zero."""
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width,
            max_position_embeddings=recipe.context,
            rotary_pct=0.25,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    for layer in model.gpt_neox.layers:
        nn.init.zeros_(layer.attention.dense.weight)
        nn.init.zeros_(layer.mlp.dense_4h_to_h.weight)
    return model


def token_stream(texts: list[Text], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Concatenate texts as token ids, (N,), an end-of-text token before each."""
    ids: list[int] = []
    for encoded in tokenizer([t.text for t in texts], verbose=False)["input_ids"]:
        ids += [tokenizer.eos_token_id, *encoded]
    return torch.tensor(ids)


def sequences(stream: Tensor, length: int, seed: int) -> Tensor:
    """Cut the stream into rows from a random offset and shuffle them: (rows, length)."""
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(length, (1,), generator=generator))
    rows = (len(stream) - offset) // length
    grid = stream[offset : offset + rows * length].view(rows, length)
    return grid[torch.randperm(rows, generator=generator)]


def optimizers(model: GPTNeoXForCausalLM, recipe: Pretrain) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, AdamW for embedding, head, norms and biases."""
    matrices = [p for p in model.gpt_neox.layers.parameters() if p.ndim == 2]
    hidden = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in hidden]
    decayed = [p for p in others if p.ndim == 2]
    plain = [p for p in others if p.ndim != 2]
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    return [Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay), adamw]


def cosine_schedule(step: int, total: int, warmup: int) -> float:
    """Return the factor of the learning rates: linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def next_token_loss(model: GPTNeoXForCausalLM, tokens: Tensor) -> Iterator[Loss]:
    """Yield the one loss of a batch of (rows, length) tokens."""
    count, own = tokens[:, 1:].numel(), processes.local_share(tokens.to(model.device))
    if not len(own):
        yield Loss(next(model.parameters()).sum() * 0.0, count, count)
        return
    mean = model(own, labels=own, use_cache=False).loss
    yield Loss(mean * own[:, 1:].numel(), count, count)


@torch.no_grad()
def validation_loss(model: GPTNeoXForCausalLM, rows: Tensor, batch_tokens: int) -> float:
    """Return the mean next-token loss in nats of (rows, length) tokens."""
    scored = [
        loss for tokens in batches(rows, batch_tokens) for loss in next_token_loss(model, tokens)
    ]
    total = processes.all_reduce(torch.stack([loss.total for loss in scored]).sum())
    return total.item() / sum(loss.items for loss in scored)


def batches(rows: Tensor, batch_tokens: int) -> Sequence[Tensor]:
    """Split (rows, length) tokens into batches of `batch_tokens`."""
    return rows.split(batch_tokens // rows.shape[1])


def pretrain(
    recipe: Pretrain,
    seed: int,
    texts: dict[str, list[Text]],
    validation: list[Text],
    checkpoint: Checkpoint,
) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast, Fit]:
    """Train tokenizer and model.

    Args:
        recipe: Settings.
        seed: Seed of weights and order.
        texts: Documents of split `base`, by corpus.
        validation: Documents of split `val`.
        checkpoint: Where to continue from and save to.

    Returns:
        Model, tokenizer and the course of the training.
    """
    torch.manual_seed(seed)
    everything = [text for corpus in texts.values() for text in corpus]
    tokenizer = train_tokenizer(everything, recipe.vocab_size, recipe.context)
    streams = {corpus: token_stream(documents, tokenizer) for corpus, documents in texts.items()}
    held_out = sequences(token_stream(validation, tokenizer), recipe.context, seed)[:32]

    phases = [phase for phase in recipe.phases for _ in range(phase.epochs)]
    text = [torch.cat([streams[corpus] for corpus in phase.corpora]) for phase in phases]
    # A context less, since every epoch starts at another offset.
    steps = [(len(stream) - recipe.context) // recipe.batch_tokens for stream in text]

    def epoch_batches(epoch: int) -> Sequence[Tensor]:
        rows = sequences(text[epoch - 1], phases[epoch - 1].context, seed + epoch)
        whole = steps[epoch - 1] * recipe.batch_tokens // rows.shape[1]
        return batches(rows[:whole], recipe.batch_tokens)

    model = new_model(recipe).to(processes.device())
    model.config.eos_token_id = model.config.bos_token_id = tokenizer.eos_token_id
    total = sum(steps)
    task = Task(
        "pretrain base",
        dict(model.named_parameters()),
        optimizers(model, recipe),
        epoch_batches,
        lambda tokens: next_token_loss(model, tokens),
        steps,
        validate=lambda: validation_loss(model, held_out, recipe.batch_tokens),
        schedule=lambda step: cosine_schedule(step, total, recipe.warmup),
        clip=1.0,
    )
    return model, tokenizer, fit(task, checkpoint)
