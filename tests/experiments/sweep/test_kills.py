"""Workers, the driver and a node killed: the results are those of a sweep that was left alone, bit for bit.

`benchmarks/sweep.py` does the same at 24 runs.
"""

import pytest

from benchmarks.sweep import Bits, bits, disturbed, finished, nodes_removed, small

RUNS, STEPS = 8, 60


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Bits, str]:
    folder = tmp_path_factory.mktemp("alone")
    path = small(folder, RUNS, STEPS)
    return finished(path, "alone.sweep", "--jobs", "1"), path.read_text()


def test_killed_workers_and_a_killed_driver(alone, tmp_path):
    path = small(tmp_path, RUNS, STEPS)
    assert path.read_text() == alone[1]
    found = disturbed(path, "killed.sweep", RUNS, kills=4, drivers=1)
    assert (found["workers killed"], found["drivers killed"]) == (4, 1)
    assert bits(tmp_path / "killed.sweep") == alone[0]


def test_a_cluster_that_loses_a_node(alone, tmp_path):
    path = small(tmp_path, RUNS, STEPS)
    nodes_removed(path, "ray.sweep", RUNS, nodes=2)
    assert bits(tmp_path / "ray.sweep") == alone[0]
