"""Peak memory of a piece of work."""

import torch

from infini.evaluation.peak_memory import peak_added_by, peak_memory

MIB = 2**20


def test_peak_added_by_excludes_what_was_held_before() -> None:
    held = torch.ones(64 * MIB, dtype=torch.uint8)

    def work() -> None:
        for _ in range(2):  # one after the other, never both
            torch.ones(48 * MIB, dtype=torch.uint8)

    assert 47 < peak_added_by(work) < 60
    assert peak_added_by(lambda: None) < 8
    small = [torch.ones(MIB // 64, dtype=torch.uint8) for _ in range(64 * 64)]
    del small  # free, and still with the process
    assert (
        peak_added_by(lambda: [torch.ones(MIB // 64, dtype=torch.uint8) for _ in range(48 * 64)])
        > 40
    )
    assert peak_memory() > 64
    assert held.all()
