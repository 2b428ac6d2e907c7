"""Second half of `make kvpress-parity`: compares our policies with kvpress' presses.

`theirs.py FILE` reads what `ours.py` wrote, gives the same text to the presses of kvpress, and
prints a table. It exits with 1 if a press disagrees with its policy, or if this file does not know
a policy.

What differs by definition, and how it is compared all the same:

- A press scores once, a policy at the end of every block: compared at the last one, nothing having
  been evicted. `BlockPress` evicts block by block: compared by the pairs that are left.
- Presses protect the last tokens by a high score, policies by the window: only pairs that both may
  evict are compared. Sinks are no candidates: the text has none, presses get none.
- H2O is a sum over queries, ObservedAttentionPress a mean: multiplied by their number.
- CURPress divides by the sum of a head's scores, which changes nothing within the head: compared
  up to a factor per head.
- LagKVPress ranks the scores within each partition, so that every partition keeps its share; a
  policy has one top K. The press is asked for the scores themselves (`cross_scoring`). Minima
  depend on where positions start, which is the text's start for a press: it gets each partition and
  the next by themselves, with positions counted from their end, as the policy does.
- ExpectedAttentionPress measures the text's own queries, which the policy is fitted to here, and
  counts positions from the text's start, the policy from its end: only distances matter.
- QFilterPress downloads its filters, which point away from the queries. Here it gets the opposite
  of the first right singular vector of the text's queries, at the positions that follow.
- RandomPress draws other numbers. A2SF, Cascading KV, R-KV and `decayed_attention` have no press.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    repeat_kv,
)

TOLERANCE = 1e-5  # of a head's largest score


class Text:
    """A text as a press sees it, in a layer whose query projection is the identity."""

    def __init__(self, tensors: dict[str, Tensor], settings: dict[str, Any]):
        self.q, self.k, self.values = (tensors[name] for name in "qkv")
        _, heads, self.length, width = self.q.shape
        self.block, self.kv_heads = settings["block"], self.k.shape[1]
        config = LlamaConfig(
            hidden_size=heads * width,
            num_attention_heads=heads,
            num_key_value_heads=self.kv_heads,
            head_dim=width,
            rope_parameters={"rope_type": "default", "rope_theta": settings["theta"]},
        )
        self.module: Any = SimpleNamespace(
            config=config,
            head_dim=width,
            layer_idx=0,
            q_proj=nn.Identity(),
            rotary_emb=LlamaRotaryEmbedding(config),
        )
        self.hidden_states = self.q.transpose(1, 2).flatten(2)
        self.embeddings = self.module.rotary_emb(self.q, torch.arange(self.length)[None])
        rotated, self.keys = apply_rotary_pos_emb(self.q, self.k, *self.embeddings)
        logits = rotated @ repeat_kv(self.keys, heads // self.kv_heads).mT * width**-0.5
        future = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
        self.attentions = logits.masked_fill(future, -torch.inf).softmax(-1)

    def score(self, press: kvpress.ScorerPress, attentions: Tensor | None = None) -> Tensor:
        """Return a press' scores: (1, G, T)."""
        more = {"position_embeddings": self.embeddings}
        return press.score(
            self.module, self.hidden_states, self.keys, self.values, attentions, more
        )

    def retained(self, press: kvpress.ScorerPress, num_retained: int) -> Tensor:
        """Return the positions that a press leaves block by block, in order: (1, G, K)."""
        press.compression_ratio = 1 - num_retained / self.length
        positions = torch.arange(self.length)[:, None].expand_as(self.values).float()
        _, left = kvpress.BlockPress(press, self.block).compress(
            self.module, self.hidden_states, self.keys, positions, None, {}
        )
        return left[..., 0].long().sort(-1).values


def mean_attention(text: Text) -> Tensor:
    """All queries but the first, which a window of one token does not score."""
    attentions = text.attentions.clone()
    attentions[:, :, 0] = 0
    score = text.score(kvpress.ObservedAttentionPress(), attentions)
    score[..., 0] *= text.length / (text.length - 1)
    return score


def total_attention(text: Text) -> Tensor:
    num_queries = torch.arange(text.length, 0, -1).clamp(max=text.length - 1)
    return num_queries * mean_attention(text)


def snapkv(text: Text) -> Tensor:
    return text.score(kvpress.SnapKVPress(window_size=text.block, kernel_size=5))


def lagkv(text: Text) -> Tensor:
    press = kvpress.LagKVPress(n_sink=0, lag_size=text.block, cross_scoring=True)
    embeddings = text.module.rotary_emb(text.k, torch.arange(-2 * text.block, 0)[None])
    scores = [
        torch.zeros_like(text.k[..., 0])[:, :, : text.block]
    ]  # of the last block, in the window
    for start in range(text.length - 2 * text.block, -1, -text.block):
        both = slice(start, start + 2 * text.block)
        k, values = text.k[:, :, both], text.values[:, :, both]
        keys, _ = apply_rotary_pos_emb(k, k, *embeddings)
        score = press.score(text.module, text.hidden_states, keys, values, None, {})
        scores.insert(0, score[:, :, : text.block])
    return torch.cat(scores, 2)


def expected_attention(text: Text) -> Tensor:
    return text.score(kvpress.ExpectedAttentionPress(n_sink=0, epsilon=0.01))


def q_filter(text: Text) -> Tensor:
    future = torch.arange(text.length, text.length + 512)[:, None].expand(-1, text.length)
    embeddings = text.module.rotary_emb(text.q, future)
    rows, _ = apply_rotary_pos_emb(text.q, text.q, *embeddings)  # (512, H, T, D)
    rows = rows.transpose(0, 1).reshape(text.kv_heads, -1, rows.shape[3]).double()
    direction = torch.linalg.svd(rows, full_matrices=False).Vh[:, 0]  # (G, D)
    sign = torch.einsum("gd,gnd->g", direction, rows).sign()
    press = kvpress.QFilterPress()
    press.q_filters = -(sign[:, None] * direction)[None].float()
    return text.score(press)


# Policy: press and its scores; None: kvpress has no such press.
SCORES: dict[str, tuple[str, Callable[[Text], Tensor]] | None] = {
    "curdkv": ("CURPress", lambda text: text.score(kvpress.CURPress(num_sinks=0))),
    "expected_attention": ("ExpectedAttentionPress", expected_attention),
    "h2o": ("ObservedAttentionPress × queries", total_attention),
    "keydiff": ("KeyDiffPress", lambda text: text.score(kvpress.KeyDiffPress())),
    "knorm": ("KnormPress", lambda text: text.score(kvpress.KnormPress())),
    "lagkv": ("LagKVPress", lagkv),
    "observed_attention": ("ObservedAttentionPress", mean_attention),
    "q_filter": ("QFilterPress", q_filter),
    "snapkv": ("SnapKVPress", snapkv),
    "tova": ("TOVAPress", lambda text: text.score(kvpress.TOVAPress())),
    "adakv": ("SnapKVPress", snapkv),
    "a2sf": None,
    "cascading": None,
    "decayed_attention": None,
    "random": None,
    "rkv": None,
}
UP_TO_FACTOR = ("curdkv",)
BLOCKWISE = {"keydiff": kvpress.KeyDiffPress, "knorm": kvpress.KnormPress}


def compare_scores(name: str, ours: Tensor, text: Text) -> tuple[str, ...]:
    """Return a row of the table."""
    if name not in SCORES:
        return name, "?", "", "", "", "unknown: add it to SCORES in theirs.py"
    entry = SCORES[name]
    if entry is None:
        return name, "–", "", "", "", ""
    candidates = ~ours.isnan().any(1)[0]
    num_pairs = int(candidates.sum())
    assert num_pairs >= text.length - text.block, f"{name} has evicted a pair"
    ours, theirs = ours[..., candidates], entry[1](text)[..., candidates]
    if name in UP_TO_FACTOR:
        ours = ours * (ours * theirs).sum(-1, True) / (ours * ours).sum(-1, True)
    difference = ((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)).max().item()
    halves = [x.topk(num_pairs // 2).indices.sort(-1).values for x in (ours, theirs)]
    verdict = "ok" if difference <= TOLERANCE else "DIFFERENT"
    return name, entry[0], str(num_pairs), f"{difference:.0e}", f"{shared(*halves):.0%}", verdict


def compare_retained(name: str, ours: Tensor, text: Text) -> tuple[str, ...]:
    """Return a row of the table."""
    theirs = text.retained(BLOCKWISE[name](), ours.shape[-1])
    same = shared(ours.sort(-1).values, theirs)
    press = f"BlockPress({BLOCKWISE[name].__name__})"
    return name, press, str(ours.shape[-1]), "", f"{same:.0%}", "ok" if same == 1 else "DIFFERENT"


def shared(a: Tensor, b: Tensor) -> float:
    """Return the share of positions, (1, G, n), that are in both, in the worst head."""
    return (a[..., None] == b[..., None, :]).any(-1).float().mean(-1).min().item()


def main(file: Path) -> int:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        text = Text(tensors, json.loads(opened.metadata()["settings"]))
    rows: list[tuple[str, ...]] = []
    for key, tensor in sorted(tensors.items(), key=lambda item: item[0].split(".")[::-1]):
        what, _, name = key.partition(".")
        if name:
            compare = compare_scores if what == "scores" else compare_retained
            rows.append(compare(name, tensor, text))
    head = ("policy", "press", "pairs", "difference", "top half", "")
    for row in [head, *rows]:
        print("{:20}{:34}{:>6}{:>12}{:>10}  {}".format(*row))
    failed = sum(row[-1] not in ("ok", "") for row in rows)
    print(f"{sum(row[-1] == 'ok' for row in rows)} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main(Path(sys.argv[1])))
