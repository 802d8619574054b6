"""Message broker of a Prefect server, which makes clients wait where Prefect's own drops events.

A server keeps the events of task runs in queues in memory, one for each of its services.  Prefect's
broker drops an event if a queue has 10,000, and the task run is then missing in the records.  This
broker lets a client that sends a stream of events wait, until the queue has room.  The client keeps
further events, and flows do not wait for it.  A server uses it with
``PREFECT_SERVER_EVENTS_MESSAGING_BROKER=infra.event_queue``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from prefect.server.utilities.messaging import memory
from prefect.server.utilities.messaging.memory import (
    Consumer,
    break_topic,
    ephemeral_subscription,
)

__all__ = ["Consumer", "Publisher", "break_topic", "ephemeral_subscription"]

ROOM = 5_000
"""Number of events in a queue from which on streams wait, half of what Prefect's queue holds.

The other half is for events of the server itself, which do not wait.
"""

STREAM_FROM = 50
"""Number of events after which a publisher counts as a stream.

The server publishes its own events by short-lived publishers.  If a consumer of events waited for
room in its own queue, it would wait for ever.
"""

WAIT_LIMIT_S = 60.0
"""Longest time in seconds that a stream waits for room; a service that has ended consumes none.

After that, the stream publishes without waiting until a queue has room; a full queue drops events.
"""

_LOOK_EVERY_S = 0.01


class Publisher(memory.Publisher):
    """Publisher to the queues of a topic, which waits for room if it publishes a stream."""

    def __init__(self, topic: str, cache: memory.Cache, deduplicate_by: str | None = None) -> None:
        super().__init__(topic, cache, deduplicate_by)
        self._published = 0
        self._gave_up = False

    async def publish_data(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """Publish a message, in a stream as soon as every queue of the topic has room.

        Args:
            data: content of the message.
            attributes: its attributes, among them its id.
        """
        self._published += 1
        if longest_queue(self.topic) < ROOM:
            self._gave_up = False
        elif self._published > STREAM_FROM and not self._gave_up:
            deadline = time.monotonic() + WAIT_LIMIT_S
            while longest_queue(self.topic) >= ROOM and not self._gave_up:
                await asyncio.sleep(_LOOK_EVERY_S)
                self._gave_up = time.monotonic() >= deadline
        await super().publish_data(data, attributes)


def longest_queue(topic: object) -> int:
    """Return the number of messages in the longest queue of a topic; 0 without a queue.

    Prefect has no public name for the queues.  If another release of it keeps them elsewhere, the
    result is 0, and events are dropped as Prefect's own broker drops them.
    """
    queues = [getattr(sub, "_queue", None) for sub in getattr(topic, "_subscriptions", ())]
    return max((queue.qsize() for queue in queues if queue is not None), default=0)
