"""Base class of context managers whose thread watches something while a block of code runs."""

from __future__ import annotations

import contextvars
import threading
from types import TracebackType
from typing import Self

# In seconds.  Longer waits would hold up the end of a run for a server that does not answer.
LONGEST_END = 1.0


class WatchThread:
    """Context manager whose thread runs `keep_looking` until the block of code ends.

    A derived class overrides `keep_looking` with a loop that ends when `over` is set.  The end of
    the block waits for the thread, at most `LONGEST_END` seconds.

    Args:
        name: name of the thread.

    Attributes:
        over: event that is set when the block of code ends.
    """

    def __init__(self, name: str) -> None:
        self.over = threading.Event()
        # Prefect keeps its settings in context variables, which a new thread would not inherit.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self.keep_looking,), name=name, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        # Otherwise what the thread does last, such as a request to stop, could reach the next flow.
        self._thread.join(LONGEST_END)

    def keep_looking(self) -> None:
        """Watch in a loop until `over` is set; a derived class overrides this."""
        raise NotImplementedError
