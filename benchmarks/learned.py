"""What the learned retention policy is fitted to: prose, and documents with retrieval questions.

Nothing else is trained. Nats per token and answers on a study's validation documents; texts with
questions are cut from its last training documents:

    cd studies/smollm2 && dvc repro prepare_data && PYTHONPATH=../.. python -m benchmarks.learned
"""

import argparse
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Generator, Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks import table
from infini import params
from infini.corpus.haystacks import FactSampler, with_questions
from infini.corpus.pieces import Pieces
from infini.evaluation.config import PasskeyProtocol, RecallProtocol
from infini.evaluation.perplexity import score_documents
from infini.evaluation.retrieval import retrieval_metrics, score_retrieval
from infini.evaluation.retrieval_texts import Haystacks
from infini.memory.eviction import FutureRegression, Learned
from infini.model.base import load_base, load_tokenizer
from infini.model.config import Base
from infini.model.fit_policy import read_with_future
from infini.model.modules import retained_modules
from infini.model.retrofit import retained_pairs
from infini.paths import DOCUMENTS

WINDOW, SINKS, RETAINED = 64, 4, 159  # as many bytes as a window of 261
MIN_DISTANCE = WINDOW + SINKS + 31  # tokens between a fact and its question
PROSE = 4  # documents
PASS_KEYS = PasskeyProtocol(lengths=[4, 8], depths=[0.1], samples=5)
CODES = RecallProtocol(pairs=[4, 16], questions=4, segments=4, samples=4)

Sums = dict[int, Tensor]  # of `FutureRegression`, by layer


def read(model: PreTrainedModel, policy: Learned, texts: Sequence[Tensor]) -> list[Sums]:
    """Return the sums of every text."""
    found = []
    for text in tqdm(texts, desc="fit", mininterval=5):
        regression = FutureRegression(policy)
        read_with_future(model, regression, text)
        found.append(regression.sums)
    return found


def fit(model: PreTrainedModel, policy: Learned, texts: Sequence[Sums]) -> None:
    """Fit the model's policy to texts, in place."""
    regression = FutureRegression(policy)
    for layer, retained in retained_modules(model).items():
        regression.sums[layer] = torch.stack([sums[layer] for sums in texts]).sum(0)
        retained.policy_weights["weights"].copy_(regression.weights(layer)["weights"])


def score(model: PreTrainedModel, documents: Pieces, haystacks: Haystacks) -> dict[str, object]:
    """Return nats per token of documents, and how the model answers questions."""
    length = haystacks.length
    row: dict[str, object] = {"nats": f"{score_documents(model, documents, length).mean:.4f}"}
    questions = score_retrieval(model, haystacks)
    names = {("passkey", 1): "pass key", ("recall", 4): "4 codes", ("recall", 16): "16 codes"}
    for (task, pairs), name in names.items():
        own = questions[(questions["task"] == task) & (questions["pairs"] == pairs)]
        found = retrieval_metrics(own)[task]
        row[f"{name}, log p"] = f"{found['log_prob']:.2f}"
        row[f"{name}, exact"] = f"{found['exact']:.0%}"
    return row


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[0, 1, 4, 8], help="documents")
    parser.add_argument("--documents", type=int, default=2, help="validation documents")
    arguments = parser.parse_args()
    base, length = params.get("base", Base), params.get("data.segment_length", int)
    model, tokenizer = load_base(base.model), load_tokenizer(base.model)
    train = Pieces.load(DOCUMENTS / "train.parquet").unpadded()
    val = Pieces.load(DOCUMENTS / "val.parquet", arguments.documents)
    haystacks, facts = Haystacks(tokenizer, val, length, PASS_KEYS, CODES), FactSampler(tokenizer)
    asked = [
        with_questions(text, facts, MIN_DISTANCE, Generator().manual_seed(seed))[0]
        for seed, text in enumerate(train[-max(arguments.questions) :])
    ]
    rows = []
    for name in ("a2sf", "learned"):
        with retained_pairs(model, name, WINDOW, SINKS, RETAINED):
            policy = next(iter(retained_modules(model).values())).policy
            if not isinstance(policy, Learned):
                rows.append({"fitted to": f"{name}, not fitted"} | score(model, val, haystacks))
                continue
            prose, questions = read(model, policy, train[:PROSE]), read(model, policy, asked)
            for count in arguments.questions:
                fit(model, policy, [*prose, *questions[:count]])
                text = f"{PROSE} documents" + (f" and {count} with questions" if count else "")
                rows.append({"fitted to": text} | score(model, val, haystacks))
                print(rows[-1], flush=True)
    notes = (
        f"float32; window {WINDOW}, {RETAINED} retained pairs a head; {len(val)} documents, "
        f"{PASS_KEYS.samples * len(PASS_KEYS.lengths)} pass keys, "
        f"{CODES.samples * CODES.questions} questions about 4 codes, as many about 16; log p: nats."
    )
    table.write("learned", pd.DataFrame(rows), notes)


if __name__ == "__main__":
    main()
