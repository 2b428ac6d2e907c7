"""Prepared pieces as padded tensors."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from infini.corpus.pieces import Pieces, shuffled, train_val_sizes
from infini.errors import InputError
from toy import some_pieces


def test_load_pads_and_masks(tmp_path: Path) -> None:
    table = pd.DataFrame({"text_id": ["b", "a"], "tokens": [[1, 2, 3], [4, 5]], "bytes": [9, 7]})
    table.to_parquet(tmp_path / "a.parquet")
    pieces = Pieces.load(tmp_path / "a.parquet", width=4)
    assert pieces.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
    assert pieces.mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert (pieces + pieces).texts.tolist() == [0, 1, 2, 3]
    assert pieces.first(1).bytes.tolist() == [9]
    with pytest.raises(InputError, match="must have ≥ 5 pieces, got 2"):
        Pieces.load(tmp_path / "a.parquet", 5)
    assert Pieces.load(tmp_path / "a.parquet", 1).tokens.tolist() == [[1, 2, 3]]
    with pytest.raises(InputError, match=r"b.parquet: not found; run stage prepare_data first"):
        Pieces.load(tmp_path / "b.parquet")


def test_batches_keep_order() -> None:
    pieces = some_pieces([8, 5, 8, 1, 7], 8)
    for tokens, sizes in ((16, [2, 2, 1]), (23, [2, 2, 1]), (5, [1] * 5), (1000, [5])):
        batches = pieces.batches(tokens)
        assert [len(batch.tokens) for batch in batches] == sizes
        assert torch.cat([batch.tokens for batch in batches]).equal(pieces.tokens)
        assert torch.cat([batch.mask for batch in batches]).equal(pieces.mask)


def test_shuffled_has_every_index_once_by_seed() -> None:
    batches = shuffled(7, 3, seed=1)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(7))
    assert torch.cat(list(batches)).equal(torch.cat(list(shuffled(7, 7, seed=1))))
    assert not torch.cat(list(batches)).equal(torch.cat(list(shuffled(7, 7, seed=2))))


@pytest.mark.parametrize(("total", "sizes"), [(100, (90, 10)), (24, (22, 2)), (2, (1, 1))])
def test_train_val_sizes(total: int, sizes: tuple[int, int]) -> None:
    assert train_val_sizes(total) == sizes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": [[5, 300]]}, "tokens must be < 300, the base's vocabulary, got 300"),
        ({"tokens": [[5, -1]]}, "tokens and bytes must be ≥ 0"),
        ({"tokens": [[5]]}, "pieces must have ≥ 2 tokens"),
        ({"tokens": [[]]}, "must be integers"),
        ({"tokens": [list(range(17))]}, "pieces must have ≤ 16 tokens"),
        ({"tokens": [[1.5, 2.0]]}, "must be integers"),
        ({"tokens": ["ab"]}, "must be integers"),
        ({"tokens": [None]}, "must be integers"),
        ({"tokens": [7]}, "must be integers"),
        ({"text_id": [["a"]]}, "text_id must be text"),
        ({"bytes": [-1]}, "tokens and bytes must be ≥ 0"),
        ({"bytes": [float("nan")]}, "bytes has values that are not finite numbers"),
        ({"bytes": ["many"]}, "bytes has values that are not finite numbers"),
        ({"bytes": [1.5]}, "must be integers"),
        ({"tokens": None}, "no column tokens"),
        ({"text_id": None}, "no column text_id"),
    ],
)
def test_load_rejects_invalid_pieces(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    row = {"text_id": ["a"], "start": [0], "tokens": [[1, 2, 3]], "bytes": [4]}
    columns = {name: value for name, value in (row | changed).items() if value is not None}
    pd.DataFrame(columns).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=message):
        Pieces.load(tmp_path / "train.parquet", width=16).within(300)
