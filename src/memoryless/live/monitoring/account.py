"""What a monitor takes of the wall time: all of it, and the stops alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Account:
    """Seconds since watching began.

    Attributes:
        began: when that was.
        stopping: on stops.
        cost: of the last stop.
    """

    def __init__(self) -> None:
        self.began, self.stopping, self.cost = time.perf_counter(), 0.0, 0.0
        self._spent, self._since = 0.0, None
        self._since: float | None

    @property
    def spent(self) -> float:
        """On watching and on stops, up to now."""
        return self._spent + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def wall(self) -> float:
        """Of the run, with what it takes to watch it."""
        return time.perf_counter() - self.began

    @property
    def overhead(self) -> float:
        """Spent over what the run takes without."""
        return self.spent / max(self.wall - self.spent, 1e-9)

    @property
    def watching(self) -> float:
        """Share of the time between stops that watching takes."""
        return (self.spent - self.stopping) / max(self.wall - self.stopping, 1e-9)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """A context whose time is spent."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._since = self.spent, None

    @contextmanager
    def stop(self) -> Iterator[None]:
        """A context that is a stop, inside of `spending`; one that fails costs no stop's time."""
        start = time.perf_counter()
        yield
        self.cost = time.perf_counter() - start
        self.stopping += self.cost
