"""Passkey retrieval: a number hidden in a long text, asked for at its end.

The task of Infini-attention's § 4.3 (arXiv 2404.07143) after Mohtashami & Jaggi (arXiv 2305.16300),
its filler drawn from test documents. Bases too small to copy a number still give a curve:
beside the exact match, the key's log-probability and the ranks of its tokens.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.console.progress import progress
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import PasskeyProtocol
from infini.evaluation.estimates import Estimate, Metrics, with_errors
from infini.evaluation.losses import BATCH_TOKENS
from infini.model.architectures import head_of
from infini.model.layers import memory_modules
from infini.model.run import States
from infini.model.segments import run_rows, run_segments, stopping_after

DIGITS = 5
PLACE = ("segments", "depth", "sample")
FIGURES = ("log_prob", "rank", "exact")


class Haystacks:
    """The texts of one run: for each (length, depth, sample) its tokens, the key's at the end."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        documents: Pieces,
        segment_length: int,
        protocol: PasskeyProtocol,
    ):
        self.tokenizer, self.length, self.protocol = tokenizer, segment_length, protocol
        self.filler = documents.tokens[documents.mask]  # all documents, one after the other

    def _ids(self, text: str) -> Tensor:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids)

    def build(self, segments: int, depth: float, sample: int) -> tuple[Tensor, int]:
        """(segments · L,) tokens, and how many of the last ones are the key."""
        generator = torch.Generator().manual_seed(1000 * sample + 10 * segments + int(10 * depth))
        number = torch.randint(10 ** (DIGITS - 1), 10**DIGITS, (1,), generator=generator)
        key = self._ids(f" {int(number)}")
        asked = self._ids(" The pass key is")
        needle = [asked, key, self._ids(". Remember it."), key, self._ids(" is the pass key.")]
        question = [self._ids(" What is the pass key?"), asked, key]
        room = segments * self.length - sum(map(len, needle)) - sum(map(len, question))
        if room < 0:
            raise InputError(
                f"params.yaml: evaluate.passkey.lengths: the key and the question alone take "
                f"{segments * self.length - room} tokens, {segments} segments hold "
                f"{segments * self.length}"
            )
        # Samples start at different places; a short corpus is read round and round.
        at = (sample * room + torch.arange(room)) % len(self.filler)
        filler, before = self.filler[at], round(depth * room)
        return torch.cat([filler[:before], *needle, filler[before:], *question]), len(key)

    def cases(self) -> list[tuple[int, float, int]]:
        """Every segments, depth, sample."""
        p = self.protocol
        return [(n, d, s) for n in p.lengths for d in p.depths for s in range(p.samples)]


@torch.no_grad()
def last_segment(
    model: PreTrainedModel, tokens: Tensor, segment_length: int, memory: bool
) -> Tensor:
    """Hidden states (B, L, d) of the last segment of (B, S·L) tokens.

    The segments before it need no layer above the last memory: nothing else crosses.
    """
    states: States = {}
    modules = memory_modules(model)
    if memory and modules:
        before = tokens[:, :-segment_length]
        lengths = torch.full((len(before),), before.shape[1])
        with stopping_after(modules[max(modules)]):
            run_rows(model.get_decoder(), before, lengths, segment_length, states)
    hidden, _ = run_segments(model, tokens[:, -segment_length:], segment_length, states)
    return hidden


@torch.no_grad()
def passkey(model: PreTrainedModel, haystacks: Haystacks) -> pd.DataFrame:
    """One row a case: segments, depth, sample; log_prob, rank, exact; the same with `_off`.

    log_prob: nats of the whole key given what precedes it; rank: mean over its tokens, 0 the
    likeliest; exact: all of rank 0, which is when greedy decoding gives the key. `_off`: the
    memory kept empty, all that an untouched base has.
    """
    rows = []
    for some in progress(list(_batches(haystacks)), "passkey"):
        built = [haystacks.build(*case) for case in some]
        tokens = torch.stack([t for t, _ in built]).to(model.device)
        measured = [
            _measure(model, tokens, [n for _, n in built], haystacks.length, memory)
            for memory in (True, False)
        ]
        for case, on, off in zip(some, *measured, strict=True):
            names = dict(zip(PLACE, case, strict=True))
            rows.append(names | on | {f"{name}_off": value for name, value in off.items()})
    return pd.DataFrame(rows)


def _batches(haystacks: Haystacks) -> Iterator[list[tuple[int, float, int]]]:
    """Cases of one length, as many as a forward pass takes."""
    for segments in haystacks.protocol.lengths:
        cases = [case for case in haystacks.cases() if case[0] == segments]
        size = max(1, BATCH_TOKENS // (segments * haystacks.length))
        yield from (cases[i : i + size] for i in range(0, len(cases), size))


def _measure(
    model: PreTrainedModel, tokens: Tensor, keys: list[int], segment_length: int, memory: bool
) -> list[dict[str, float]]:
    hidden = last_segment(model, tokens, segment_length, memory)
    results = []
    for row, states, n in zip(tokens, hidden, keys, strict=True):
        log_p = head_of(model)(states[-n - 1 : -1]).double().log_softmax(-1)  # (n, V)
        if not log_p.isfinite().all():
            raise InputError("passkey: a probability is not finite: the model's weights are broken")
        own = log_p.gather(1, row[-n:, None])  # (n, 1)
        ranks = (log_p > own).sum(1)
        results.append(
            {
                "log_prob": own.sum().item(),
                "rank": ranks.double().mean().item(),
                "exact": float((ranks == 0).all()),
            }
        )
    return results


def summary(table: pd.DataFrame) -> Metrics:
    """Means over all cases; gain: nats that the memory adds to the key's log-probability."""
    names = ("log_prob", "rank", "exact", "log_prob_off", "rank_off", "exact_off")
    gain = table["log_prob"] - table["log_prob_off"]
    means = {name: Estimate(table[name].mean()) for name in names}
    error = gain.sem() if len(gain) > 1 else None
    return with_errors(**means, gain=Estimate(gain.mean(), error))
