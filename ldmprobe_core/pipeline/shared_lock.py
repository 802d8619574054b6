"""Lock that threads hold side by side while they compute, and alone while they load a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedExclusiveLock:
    """Readers-writer lock: computing is shared, loading is exclusive and has priority.

    Libraries change process-wide state while they load a model, such as torch's default dtype, so
    a computation at the same time could give different numbers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing, self._waiting, self._loading = 0, 0, False
        self._this_thread = threading.local()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for exclusive access."""
        return self._waiting

    @property
    def n_computing(self) -> int:
        """Number of threads that have shared access."""
        return self._computing

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold the lock shared; a thread that holds it already may enter again."""
        if self._is_computing:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not (self._loading or self._waiting))
            self._computing += 1
        self._this_thread.computing = True
        try:
            yield
        finally:
            self._this_thread.computing = False
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Hold the lock alone; a thread's shared access is suspended meanwhile."""
        suspended = int(self._is_computing)
        with self._changed:
            self._computing -= suspended
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._loading or self._computing))
            self._waiting -= 1
            self._loading = True
        try:
            yield
        finally:
            with self._changed:
                self._loading = False
                self._changed.notify_all()
                if suspended:
                    self._changed.wait_for(lambda: not (self._loading or self._waiting))
                    self._computing += suspended

    @property
    def _is_computing(self) -> bool:
        return getattr(self._this_thread, "computing", False)
