"""Lock that prevents any thread from computing while another thread loads a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedExclusiveLock:
    """Lock with shared access for threads that compute, and exclusive access to load a model.

    Threads that wait for exclusive access have priority.  The lock is needed because libraries
    change the state of the whole process while they load a model, such as PyTorch's default dtype,
    and a computation at that time could give different numbers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing, self._waiting, self._loading = 0, 0, False
        self._this_thread = threading.local()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for exclusive access, to load a model."""
        return self._waiting

    @property
    def n_computing(self) -> int:
        """Number of threads that have shared access, to compute."""
        return self._computing

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold shared access (to compute) during the ``with`` block; such blocks may be nested."""
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
        """Hold exclusive access (for loading a model) during the ``with`` block.

        If the calling thread has shared access, it gives that up inside the ``with`` block.
        """
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

    def give_way(self) -> None:
        """Pause a computation of the calling thread while other threads have exclusive access.

        Call this method between the steps of a long computation.  Otherwise, threads that want to
        load a model have to wait until the whole computation has ended.
        """
        if not (self._is_computing and self._waiting):
            return
        with self._changed:
            self._computing -= 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not (self._loading or self._waiting))
            finally:
                self._computing += 1

    @property
    def _is_computing(self) -> bool:
        """Flag that is True if the calling thread has shared access."""
        return getattr(self._this_thread, "computing", False)
