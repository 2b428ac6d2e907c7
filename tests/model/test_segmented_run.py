"""What our modules are told while a run lasts."""

import pytest
import torch

import infini
from architectures import L, text, tiny
from infini.memory.packing import Packing
from infini.model.segmented.run import SegmentedRun, UsesRun, use_run


@torch.no_grad()
def test_a_run_reaches_all_of_ours_and_ends_with_its_block() -> None:
    model = infini.retrofit(tiny("llama"), "replace", [0, 2], L)
    ours = [module for module in model.modules() if isinstance(module, UsesRun)]
    assert len(ours) == 3  # the decoder and two layers
    run = SegmentedRun(Packing.of(1, 2 * L, None), 2 * L, L)
    with use_run(model.get_decoder(), run):
        assert all(module.run is run for module in ours)
        rows = text(1, 2 * L).view(2, L)
        model.get_decoder()(rows, use_cache=False)
    assert sorted(run.states) == [0, 2]
    with pytest.raises(ZeroDivisionError), use_run(model.get_decoder(), run):
        raise ZeroDivisionError
    assert all(module.run is None for module in ours)
