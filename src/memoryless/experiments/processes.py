"""Processes of their own for the pieces of long work: forked from one that has imported torch and run nothing."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any


def context(preload: Iterable[str]) -> Any:
    """Where processes come from: a fork server where there is one, else new ones.

    Args:
        preload: modules that each will need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([*preload])
    return found


def apart(function: Callable[..., Any], preload: Iterable[str]) -> Callable[..., Future[Any]]:
    """A function that works in a process of its own, at each call another.

    Args:
        function: of a module.
        preload: modules that it needs.

    Returns:
        What takes the function's arguments and gives a future: of what it returns or raises, or of `pebble.ProcessExpired`.
    """
    from pebble import concurrent

    process: Any = concurrent.process  # of whose options its stubs know others
    return process(context=context(preload))(function)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that came."""
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
