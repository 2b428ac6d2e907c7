"""The pairs that stay, against a loop over tokens that knows their definition alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory import eviction
from infini.memory.eviction import RetainedState, Sight, choose, recent
from memory.toy_retained import Keeper, favours, loop
from memory.toy_window import B, D, G, H, V, tokens, turn

SCALE = D**-0.5


@pytest.fixture(autouse=True, params=[16, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block."""
    monkeypatch.setattr(eviction, "BLOCK", request.param)
    return request.param


def keep(
    q: Tensor, k: Tensor, chunks: list[int], keeper: Keeper, favour: Tensor | None = None
) -> RetainedState:
    """What `choose` leaves after a text that comes in chunks; keys by their numbers in it.

    favour: of every pair, (B, G, T); None: of none.
    """
    W, S, K = keeper.window, keeper.sinks, keeper.count
    reach = min((x for x in (keeper.context, keeper.limit) if x is not None), default=None)
    numbers = torch.arange(q.shape[2])[None]
    near, far = turn(q, numbers), turn(q, numbers.clamp(max=W + S - 1))
    keys, favour = turn(k, numbers), k.new_zeros(k.shape[:3]) if favour is None else favour
    state, count = RetainedState.empty(k, k, K, recent(W)), 0
    for T in chunks:
        end = count + T
        place = state.positions.clamp(min=0)
        held, favours_held = (
            F.pad(x, (0, 0, recent(W), 0))[:, :, count : end + recent(W)]
            for x in (keys, favour[..., None])
        )
        pairs = torch.cat([keys.gather(2, place[..., None].expand(-1, -1, -1, D)), held], 2)
        by_pair = torch.cat([favour.gather(2, place), favours_held[..., 0]], 2)
        sight = Sight(count, T, W, S, reach, keeper.limit)
        asked = near[:, :, count:end] * SCALE, far[:, :, count:end] * SCALE
        choice = choose(asked, pairs, keys[:, :, :S], by_pair, state, sight)
        assert choice.places.shape == choice.there.shape == (B, G, sight.blocks + 1, K)
        state = state._replace(
            positions=choice.positions, scores=choice.scores, attention=choice.attention
        )
        count = end
    return state


def assert_known(state: RetainedState, keepers: list[list[Keeper]], length: int) -> None:
    """Positions, scores and attention are those that the loop's keepers know."""
    for b in range(B):
        for g in range(G):
            own = keepers[b][g]
            missing = [-1] * (own.count - len(own.retained))
            assert state.positions[b, g].tolist() == own.retained + missing, (
                "the highest score first"
            )
            first = max(
                own.sinks, length - length % eviction.BLOCK - own.window + 1
            )  # still in a window
            held = [j if j >= first else -1 for j in range(length - recent(own.window), length)]
            for tensor, known in ((state.scores, own.scores), (state.attention, own.paid)):
                figures = [known.get(j, 0) for j in (*own.retained, *missing, *held)]
                expected = torch.tensor(figures, dtype=torch.float32)
                torch.testing.assert_close(tensor[b, g], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("W", "S", "K"), [(5, 2, 4), (1, 0, 3), (20, 3, 2), (12, 4, 1), (6, 0, 90)]
)
@pytest.mark.parametrize(("context", "limit"), [(None, None), (48, None), (None, 40), (64, 9)])
def test_pairs_kept_and_their_scores_are_those_of_a_loop(
    W: int, S: int, K: int, context: int | None, limit: int | None
) -> None:
    length = 101
    q, k, v = tokens(length)
    weight = 1.2 * V**-0.5 * torch.randn(G, V, dtype=torch.float64)
    favour = torch.stack([favours(v[:, g], weight[g]) for g in range(G)], 1)
    how = {"window": W, "sinks": S, "count": K, "context": context, "limit": limit}
    _, keepers = loop((q, k, v), torch.zeros(H), weight, how)
    room = min(x for x in (context, limit, length) if x is not None) >= W + eviction.BLOCK
    assert any(own.retained for row in keepers for own in row) == room
    plain, none, of_favour = (
        keep(q, k, [length], Keeper(**how), some).positions
        for some in (None, favour.clamp(max=eviction.MARGIN), favour)
    )
    assert plain.equal(none), "small ones decide nothing"
    assert plain.equal(of_favour) == (not room)
    for chunks in ([length], [3, 14, 1, 40, length - 58], [1] * length):
        assert_known(keep(q, k, chunks, Keeper(**how), favour), keepers, length)


def test_nothing_is_kept_before_the_window_moves(block: int) -> None:
    q, k, _ = tokens(2 * block)
    W = 2 * block - 4
    for favour in (None, torch.ones(B, G, 2 * block)):
        # Token 4 leaves, unseen by any that counts
        state = keep(q, k, [2 * block], Keeper(W, 4, 3), favour)
        assert state.positions.eq(-1).all()
        assert not state.scores.any()


def test_fame_fades(block: int) -> None:
    """One pair is asked for in a block, another four blocks later; there is room for one."""
    first, second, end = block // 2, 4 * block + block // 2, 5 * block
    q, k = (torch.zeros(B, heads, end, D) for heads in (H, G))
    k[:, :, 0, 2], q[:, :, block : 4 * block, 2] = 1, 40  # meanwhile all look at the sink
    k[:, :, first, 0], q[:, :, first:block, 0] = 1, 40
    k[:, :, second, 1], q[:, :, second:, 1] = 1, 40
    q, k = (turn(x, -torch.arange(end)[None]) for x in (q, k))  # `keep` turns them back
    for length, kept in ((4 * block, first), (end - 1, first), (end, second)):
        state = keep(q[:, :, :length], k[:, :, :length], [length], Keeper(2, 1, 1))
        assert state.positions.eq(kept).all()


@pytest.mark.parametrize(
    ("favour", "lasts"), [(0.0, False), (0.6, False), (1.3, True), (-1.3, False)]
)
def test_a_favour_does_not_fade(block: int, favour: float, lasts: bool) -> None:
    """One pair is asked for in a block, another half as much four blocks later."""
    first, second, end = block // 2, 4 * block + block // 2, 5 * block
    q, k = (torch.zeros(B, heads, end, D) for heads in (H, G))
    k[:, :, 0, 2], q[:, :, block:, 2] = 1, 40  # all but the first block looks at the sink
    k[:, :, first, 0], q[:, :, first:block, 0] = 1, 40
    k[:, :, second, 1], q[:, :, second:, 1] = 1, 40  # and at this one as much
    q, k = (turn(x, -torch.arange(end)[None]) for x in (q, k))  # `keep` turns them back
    favours = torch.zeros(B, G, end)
    favours[:, :, first] = favour
    for chunks in ([end], [1] * end):
        state = keep(q, k, chunks, Keeper(2, 1, 1), favours)
        assert state.positions.eq(first if lasts else second).all()


def test_a_pair_with_the_same_attention_stays_if_it_is_favoured(block: int) -> None:
    """Two pairs are asked for alike, in the block before they leave; there is room for one."""
    pair, end = [block + 1, block + 2], 3 * block
    q, k = (torch.zeros(B, heads, end, D) for heads in (H, G))
    k[:, :, 0, 2], q[:, :, :, 2] = 1, 40  # else all look at the sink
    k[:, :, pair, 0], q[:, :, pair[1] : 2 * block, 0] = 1, 80
    q, k = (turn(x, -torch.arange(end)[None]) for x in (q, k))
    for favoured in pair:
        favours = torch.zeros(B, G, end)
        favours[:, :, favoured] = 1.3
        state = keep(q, k, [end], Keeper(block, 1, 1), favours)
        assert state.positions.eq(favoured).all()


def test_a_choice_is_made_in_float32_whatever_the_type() -> None:
    q, k, _ = tokens(60)
    expected = keep(q, k, [60], Keeper(5, 2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        under = keep(q, k, [60], Keeper(5, 2, 4))
    for one, other in zip(under, expected, strict=True):
        assert torch.equal(one, other)
