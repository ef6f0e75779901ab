"""A run in several processes, forks of this one: torch is imported once. What each found comes back through a pipe."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 60.0
"""Seconds after which a process that does not answer is a hang: the test fails, and nothing waits on."""


def _work(rank: int, count: int, folder: str, action: Callable[..., Any], dtype: torch.dtype, pipe: Any) -> None:
    try:
        torch.set_num_threads(1)
        torch.set_default_dtype(dtype)
        options = {"init_method": f"file://{folder}/meet", "timeout": timedelta(seconds=TIMEOUT)}
        dist.init_process_group("gloo", rank=rank, world_size=count, **options)
        pipe.send((action(rank), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    os._exit(0)  # what hangs in the group's end is no part of the test


def spread(count: int, action: Callable[[int], Any], dtype: torch.dtype = torch.float64) -> list[Any]:
    """What `action(rank)` returns in each of some processes.

    Raises:
        AssertionError: one of them failed, or does not answer.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_work, args=(rank, count, folder, action, dtype, pipe), daemon=True)
            for rank, (_, pipe) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        try:
            found = []
            for rank, (pipe, _) in enumerate(pipes):
                assert pipe.poll(TIMEOUT), f"process {rank} of {count} hangs"
                result, error = pipe.recv()
                assert error is None, f"process {rank}: {error}"
                found.append(result)
            return found
        finally:
            for process in processes:
                process.kill()
                process.join()
