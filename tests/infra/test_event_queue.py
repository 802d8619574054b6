"""Broker of the Prefect server: streams of events wait for room, and none is dropped."""

import asyncio
import uuid

import pytest
from prefect.server.utilities.messaging import BrokerModule, memory

from infra import event_queue


@pytest.fixture
def topic():
    """Topic of its own, without subscriptions."""
    return memory.Topic.by_name(str(uuid.uuid4()))


async def send(broker, topic, count):
    async with broker.Publisher(topic.name, memory.Cache(), deduplicate_by="id") as publisher:
        for number in range(count):
            await publisher.publish_data(b"%d" % number, {"id": str(uuid.uuid4())})


async def consumed(broker, topic, count):
    """Send a stream to a consumer, and return what it consumed."""
    found = []

    async def handle(message):
        found.append(int(message.data))

    consumer = broker.Consumer(topic.name)
    task = asyncio.create_task(consumer.run(handle))
    await send(broker, topic, count)
    while event_queue.longest_queue(topic):
        await asyncio.sleep(0)
    task.cancel()
    return found


def test_broker_has_the_parts_that_prefect_asks_for():
    assert isinstance(event_queue, BrokerModule)


@pytest.mark.parametrize(("broker", "lost"), [(memory, 2_000), (event_queue, 0)])
def test_stream_longer_than_the_queue_is_kept_in_order(topic, broker, lost):
    """Prefect's own broker keeps the 10,000 that its queue holds while nothing is consumed."""
    found = asyncio.run(consumed(broker, topic, 12_000))
    assert found == list(range(12_000 - lost))


def test_publisher_of_few_events_does_not_wait(topic, monkeypatch):
    """An event of the server itself passes even if no consumer makes room."""
    monkeypatch.setattr(event_queue, "ROOM", 10)
    topic.subscribe()

    async def publish():
        for _ in range(30):
            await send(event_queue, topic, 1)

    asyncio.run(asyncio.wait_for(publish(), 20))
    assert event_queue.longest_queue(topic) == 30 > event_queue.ROOM


def test_stream_goes_on_if_a_service_consumes_nothing(topic, monkeypatch):
    monkeypatch.setattr(event_queue, "ROOM", 60)
    monkeypatch.setattr(event_queue, "WAIT_LIMIT_S", 0.02)
    topic.subscribe()
    asyncio.run(send(event_queue, topic, 65))
    assert event_queue.longest_queue(topic) == 65


def test_queues_that_another_release_keeps_elsewhere_do_not_stop_events(monkeypatch):
    monkeypatch.setattr(event_queue, "ROOM", 1)
    sent = []

    class Elsewhere:
        async def publish(self, message):
            sent.append(message.data)

    async def publish():
        publisher = event_queue.Publisher("any", memory.Cache())
        publisher.topic = Elsewhere()
        for number in range(event_queue.STREAM_FROM + 2):
            await publisher.publish_data(b"%d" % number, {"id": str(number)})

    asyncio.run(asyncio.wait_for(publish(), 20))
    assert len(sent) == event_queue.STREAM_FROM + 2
