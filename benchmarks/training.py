"""Speed of distillation and finetuning steps, against the research log's code and the limit.

At pythia-70m's sizes with random weights: layer 0 is replaced, its tensors alone are trained.

The research log's code: the teacher layer runs again for every batch, batches are padded to the
longest, the causal sum over keys and values is a whole product (B, H, T, D, D), there is one
optimizer step per segment with the memory detached, and logits are whole float32 tensors. The
limit: the FLOPs that the step cannot avoid, at the rate of a large matrix product measured in the
same rounds.

    python -m benchmarks.training
"""

import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

import infini
from benchmarks import table
from infini import processes
from infini.corpus.pieces import Pieces
from infini.evaluation.layer_error import LayerData, record_layer, squared_error
from infini.evaluation.peak_memory import peak_added_by
from infini.memory.features import EPSILON
from infini.model.architectures import decoder_layers, output_head
from infini.model.modules import parameter_groups, segmented_layers
from infini.model.segmented.run import run_segments
from infini.training.config import LongRecipe
from infini.training.long_context import DocumentBatch, DocumentTraining
from infini.training.loop import Loss, adamw

HIDDEN, HEADS, LAYERS, VOCABULARY = 512, 8, 6, 50304
SEGMENT, DOCUMENT, BATCH = 256, 4096, 8
ROUNDS = {"distillation": 8, "finetuning": 3}
RECIPE = LongRecipe(
    epochs=1, lr=1e-5, gate_lr=1e-5, batch_size=1, hold_out=False, patience=None,
    documents=None, update="document", bptt_segments=None,
)  # fmt: skip


def base() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=4 * HIDDEN, rotary_pct=0.25,
    )  # fmt: skip
    model: PreTrainedModel = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    return model.to(processes.device())


class LogAttention(nn.Module):
    """Linear attention and delta memory as in the research log: every product materialised."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.beta = nn.Parameter(torch.zeros(HEADS))
        self.memory: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        q, k, v = (
            proj(hidden_states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )  # (B, H, T, D)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        products = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(2)  # (B, H, T, D, D)
        scale = torch.einsum("bhtd,bhtd->bht", q, k.cumsum(2))[..., None]
        out = torch.einsum("bhtd,bhtde->bhte", q, products) / scale.clamp(min=EPSILON)
        if self.memory is not None:
            matrix, normalizer = self.memory
            reads = (q @ matrix) / (q @ normalizer).clamp(min=EPSILON)
            gate = self.beta.sigmoid()[:, None, None]
            out = gate * reads + (1 - gate) * out
            v = v - (k @ matrix) / (k @ normalizer).clamp(min=EPSILON)
        else:
            matrix, normalizer = torch.zeros_like(k[0, 0].T @ v[0, 0]), 0.0
        self.memory = (
            (matrix + k.transpose(-1, -2) @ v).detach(),
            (normalizer + k.sum(2)[..., None]).detach(),
        )
        return self.o(out.transpose(1, 2).flatten(2)), None


def distillation() -> dict[str, Callable[[], int]]:
    """Return steps by name; a step returns its number of real tokens."""
    model = base()
    lengths = torch.randint(SEGMENT // 2, SEGMENT + 1, (BATCH,)).clamp(max=SEGMENT)
    mask = torch.arange(SEGMENT) < lengths[:, None]
    tokens = torch.randint(VOCABULARY, mask.shape) * mask
    teacher, embed = decoder_layers(model)[0], model.get_input_embeddings()
    rotary = model.get_decoder().rotary_emb
    data: LayerData = record_layer(
        model, 0, Pieces(tokens, mask, lengths, torch.arange(len(tokens)))
    )

    infini.retrofit(model, "replace", [0], SEGMENT, update="delta", local="linear", init="random")
    ours = segmented_layers(model)[0]
    optimizer = adamw(*parameter_groups(model), 1e-4, 1e-4)

    def our_step() -> int:
        items = int(mask.sum())
        (squared_error(ours, data, torch.arange(BATCH)) / items).backward()
        optimizer.step()
        optimizer.zero_grad()
        return items

    student = log_layer(teacher)
    log_optimizer = torch.optim.AdamW(student.parameters(), 1e-4)

    def log_step() -> int:
        hidden = embed(tokens)
        positions = rotary(hidden, torch.arange(SEGMENT)[None])
        student.attention.memory = None  # type: ignore[union-attr]
        with torch.no_grad():
            target = teacher(hidden, None, position_embeddings=positions)
        out = student(hidden, None, position_embeddings=positions)
        F.mse_loss(first(out), first(target)).backward()
        log_optimizer.step()
        log_optimizer.zero_grad()
        return int(mask.sum())

    return {"ours": our_step, "research log": log_step}


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden states of a layer's output."""
    return out[0] if isinstance(out, tuple) else out


def log_layer(teacher: nn.Module) -> nn.Module:
    """Return a trainable copy of a layer with the research log's attention."""
    layer = copy.deepcopy(teacher).requires_grad_(True)
    layer.attention = LogAttention()
    return layer


def finetuning() -> dict[str, Callable[[], int]]:
    """Return the steps of a document by name; they return its number of tokens."""
    tokens = torch.randint(VOCABULARY, (1, DOCUMENT))
    everything = torch.ones_like(tokens, dtype=torch.bool)
    documents = Pieces(tokens, everything, torch.tensor([DOCUMENT]), torch.zeros(1))
    model = infini.retrofit(
        base(), "replace", [0], SEGMENT, update="delta", local="linear", init="random"
    )
    optimizer = adamw(*parameter_groups(model), 1e-5, 1e-5)

    def steps(losses: Callable[[], object]) -> int:
        for loss in losses():  # type: ignore[attr-defined]
            (loss.total / loss.step_items).backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
        return DOCUMENT

    by_segment = RECIPE.model_copy(update={"update": "segment", "bptt_segments": 0})
    log_model = base()
    decoder_layers(log_model)[0] = log_layer(decoder_layers(log_model)[0])
    attention = decoder_layers(log_model)[0].attention
    log_optimizer = torch.optim.AdamW([p for p in log_model.parameters() if p.requires_grad], 1e-5)

    def log_document() -> int:
        attention.memory = None  # type: ignore[union-attr]
        for segment in tokens.split(SEGMENT, 1):
            log_model(segment, labels=segment, use_cache=False).loss.backward()
            log_optimizer.step()
            log_optimizer.zero_grad()
        return DOCUMENT

    def whole_logits() -> list[Loss]:
        hidden, _ = run_segments(model, tokens, SEGMENT)
        logits = output_head(model)(hidden).float()
        total = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
        return [Loss(total, DOCUMENT - 1, DOCUMENT - 1)]

    batch = DocumentBatch(torch.tensor([0]))
    whole = DocumentTraining(model, documents, SEGMENT, RECIPE)
    stepwise = DocumentTraining(model, documents, SEGMENT, by_segment)
    return {
        "ours": lambda: steps(lambda: whole.losses(batch)),
        "ours, step per segment": lambda: steps(lambda: stepwise.losses(batch)),
        "ours with whole logits": lambda: steps(whole_logits),
        "research log": log_document,
    }


def flops_per_token(phase: str) -> float:
    """Return the FLOPs of the matrix products that one token's step cannot avoid."""
    layer, local = 24 * HIDDEN**2, 2 * SEGMENT * HIDDEN
    memory = 4 * HIDDEN * (HIDDEN // HEADS)
    if phase == "distillation":
        return 3.0 * (layer + memory)  # forward, gradients of activations and of weights
    trained = 3.0 * (layer + memory)
    frozen = 2.0 * layer + 3.0 * local  # no gradients of weights
    return trained + (LAYERS - 1) * frozen + 2.0 * 2 * HIDDEN * VOCABULARY


def matmul_rate() -> float:
    """Return the FLOP/s of a large float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    start = time.perf_counter()
    for _ in range(4):
        a @ b
    return 4 * 2 * 2048**3 / (time.perf_counter() - start)


PHASES = {"distillation": distillation, "finetuning": finetuning}


def _peak(phase: str, name: str, queue: "multiprocessing.Queue[float]") -> None:
    step = PHASES[phase]()[name]
    step()  # optimizer states are there from the second step on
    queue.put(peak_added_by(step))


def peak_memory(phase: str, name: str) -> float:
    """Return the MiB that a step adds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(phase, name, queue))
    process.start()
    peak: float = queue.get()
    process.join()
    return peak


def measure(phase: str) -> list[dict[str, object]]:
    """Return one row per variant: medians over interleaved rounds."""
    variants = PHASES[phase]()
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    limits = []
    for round_ in tqdm(range(ROUNDS[phase] + 1), desc=phase, mininterval=5):
        rate = matmul_rate()
        for name, step in variants.items():
            start = time.perf_counter()
            tokens = step()
            if round_:  # the first warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
        if round_:
            limits.append(rate / flops_per_token(phase))

    def ratio(name: str, others: list[float]) -> str:
        pairs = zip(speeds[name], others, strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}"

    return [
        {
            "phase": phase,
            "variant": name,
            "tokens/s": round(statistics.median(speeds[name])),
            "÷ research log": ratio(name, speeds["research log"]),
            "÷ limit": ratio(name, limits),
            "peak memory, MiB": round(peak_memory(phase, name)),
        }
        for name in variants
    ]


def main() -> None:
    rows = [row for phase in PHASES for row in measure(phase)]
    notes = (
        f"Hidden size {HIDDEN}, {LAYERS} layers, vocabulary {VOCABULARY}; distillation: {BATCH} "
        f"samples of {SEGMENT // 2} to {SEGMENT} tokens a step; finetuning: a document of "
        f"{DOCUMENT} tokens in segments of {SEGMENT}."
    )
    table.write("training", pd.DataFrame(rows), notes)


if __name__ == "__main__":
    main()
