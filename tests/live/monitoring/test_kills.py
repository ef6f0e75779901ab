"""A monitored run that is killed at random moments, and goes on from its checkpoints: the log whole, the run the same."""

import torch

from benchmarks.kills import runs


def test_a_killed_run_goes_on_bit_for_bit_and_its_log_has_no_gap():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        found = runs(5, seed=1)
    finally:
        torch.set_default_dtype(dtype)
    assert found["kills"] == 5
    assert found["kills after the first stop"]
