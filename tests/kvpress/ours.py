"""First half of `make kvpress-parity`: writes a random text and what our policies make of it.

`ours.py FILE` runs in the repository's environment, `theirs.py FILE` in one with kvpress, which
needs an older transformers. Between the two goes one safetensors file:

- `q`, `k`, `v`: queries, keys and values without positions;
- `scores.<policy>`: scores of the candidates at the end of the last block, by position; NaN for
  tokens in the window. K is the length of the text, so nothing has been evicted before, as when a
  press scores once. The window is one token longer than a block: the candidates are all tokens but
  those of the last block;
- `retained.<policy>`: positions that `RETAINED` pairs per head have after the text, evicted block
  by block, with the shortest window.

There are no sinks.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from infini.choices import RETENTION_BLOCK
from infini.memory.eviction import (
    BlockLayout,
    CallPairs,
    HeldPairs,
    LayerPolicy,
    Learned,
    QueryStatistics,
    RetainedState,
    RetentionPolicy,
    num_recent,
    policy_by_name,
    policy_names,
    select,
)

H, G, D, T = 6, 2, 16, 5 * RETENTION_BLOCK
THETA = 1e4  # base of the rotary frequencies
RETAINED = 2 * RETENTION_BLOCK
# With a window of one token, the attention of all queries but the first counts.
OF_ALL_QUERIES = ("h2o", "observed_attention")
# Their scores depend on what is held alone, so they can be followed through evictions.
STREAMED = ("keydiff", "knorm")


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate (B, H, T, D) by positions, (B or 1, T), as Llama does."""
    frequencies = THETA ** (-torch.arange(0, D, 2) / D)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]
    left, right = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()


def random_text() -> dict[str, Tensor]:
    """Return q, (1, H, T, D), k and v, (1, G, T, D): heads have means, tokens have scales."""
    torch.manual_seed(0)
    text = {}
    for name, heads in (("q", H), ("k", G), ("v", G)):
        mean, scale = torch.randn(1, heads, 1, D), torch.rand(1, heads, T, 1) + 0.5
        text[name] = mean + scale * torch.randn(1, heads, T, D)
    return text


def read(
    policy: RetentionPolicy, text: dict[str, Tensor], window: int, num_retained: int
) -> tuple[Tensor, Tensor]:
    """Read the text.

    Returns:
        Scores of the last block's candidates, (1, G, T), by position, NaN for other tokens; and
        the positions of the retained pairs, (1, G, K).
    """
    q, k, v = (text[name] for name in "qkv")
    K, R, scale, positions = num_retained, num_recent(window), D**-0.5, torch.arange(T)[None]
    moment = torch.einsum("bhti,bhtj->hij", q, q) / T
    statistics = QueryStatistics(scale * q.mean((0, 2)), scale**2 * moment, G, rotate)
    seen: list[tuple[HeldPairs, Tensor]] = []

    def record(score: partial[Tensor], pairs: HeldPairs) -> Tensor:
        seen.append((pairs, score(pairs)))
        return seen[-1][1]

    policy.score = partial(record, policy.score)  # type: ignore[method-assign, arg-type]
    rotated_q = scale * rotate(q, positions)
    keys, rotated, values = (F.pad(x, (0, 0, K + R, 0)) for x in (k, rotate(k, positions), v))
    selection = select(
        (rotated_q, rotated_q),
        CallPairs(keys, rotated, values, rotated[:, :, :0]),
        torch.zeros(1, G, K + R + T),
        RetainedState.empty(k, v, K, R, policy),
        BlockLayout(0, T, window, 0, None),
        LayerPolicy(policy, 0, policy.fit(statistics), rotate),
    )
    pairs, scores = seen[-1]
    assert pairs.block_end == T
    candidates = slice(0, pairs.num_candidates)
    index = pairs.positions.where(pairs.valid, T)[..., candidates]
    by_position = torch.full((1, G, T + 1), torch.nan)
    by_position = by_position.scatter(2, index, scores[..., candidates].float())
    return by_position[..., :T].contiguous(), selection.positions


def main(file: Path) -> None:
    text = random_text()
    results = dict(text)
    for name in policy_names():
        if isinstance(policy_by_name(name), Learned):
            continue  # needs a model to be fitted to, and kvpress has no such press
        window = 1 if name in OF_ALL_QUERIES else RETENTION_BLOCK + 1
        results[f"scores.{name}"], _ = read(policy_by_name(name), text, window, T)
    for name in STREAMED:
        _, results[f"retained.{name}"] = read(policy_by_name(name), text, 1, RETAINED)
    settings = {"theta": THETA, "block": RETENTION_BLOCK}
    save_file(results, file, {"settings": json.dumps(settings)})


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
