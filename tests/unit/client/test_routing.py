"""Who waits for metadata together: each for as long as it may, and no longer. What proves wrong is asked for anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from raystream import messages as m
from raystream.client import routing as routing_module
from raystream.client.routing import Leader, Routing
from raystream.clock import SystemClock
from raystream.errors import NotEnoughBrokers, RequestTimeout, Unavailable

TOPIC = m.TopicMetadata(
    topic_id="a" * 32,
    name="t",
    typed=False,
    key=None,
    time=None,
    replication_factor=1,
    partitions=(),
    schemas=(),
    config={},
)


class Broker:
    """Answers nothing until it is told to; like a call that was lost, one that was left alone stays so."""

    def __init__(self) -> None:
        self.answers = False
        self.asked = False
        self.asked_again = asyncio.Event()

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
        if self.asked:
            self.asked_again.set()
        self.asked = True
        if not self.answers:
            await asyncio.sleep(timeout_ms / 1000)
            raise RequestTimeout("no answer")
        return m.MetadataReply(cluster_id="c", version=1, topics=(TOPIC,), brokers=())


def routing_to(broker: Broker) -> Routing:
    class Directory:
        node_id = "here"

        async def controller(self) -> Any:
            return broker

    return Routing(Directory(), SystemClock())  # type: ignore[arg-type]


def test_who_has_more_time_outlives_who_asked_first() -> None:
    broker = Broker()
    routing = routing_to(broker)

    async def main() -> None:
        hasty = asyncio.ensure_future(routing.topic("t", timeout_ms=50))
        await asyncio.sleep(0.01)
        patient = asyncio.ensure_future(routing.topic("t", timeout_ms=5_000))
        with pytest.raises(RequestTimeout):
            await hasty
        broker.answers = True
        assert await patient == TOPIC

    asyncio.run(main())


def test_who_has_less_time_does_not_wait_for_who_asked_first() -> None:
    broker = Broker()
    routing = routing_to(broker)

    async def main() -> None:
        patient = asyncio.ensure_future(routing.topic("t", timeout_ms=60_000))
        await asyncio.sleep(0.01)
        with pytest.raises(RequestTimeout, match="'t' within 50 ms"):
            await routing.topic("t", timeout_ms=50)
        patient.cancel()

    asyncio.run(main())


def test_a_lost_call_for_metadata_is_made_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_module, "METADATA_TIMEOUT_MS", 20.0)
    broker = Broker()
    routing = routing_to(broker)

    async def main() -> None:
        asking = asyncio.ensure_future(routing.topic("t", timeout_ms=60_000))
        await broker.asked_again.wait()
        broker.answers = True
        assert await asking == TOPIC

    asyncio.run(main())


def test_an_actor_that_is_not_there_is_not_looked_for_until_the_metadata_is_old() -> None:
    class Controller:
        asked = 0

        async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
            self.asked += 1
            actor = "dead" if self.asked == 1 else "successor"
            partition = m.PartitionMetadata(
                partition=0, leader=1, leader_epoch=0, replicas=(1,), isr=(1,), actor=actor, node_id="here"
            )
            topics = (replace(TOPIC, partitions=(partition,)),)
            return m.MetadataReply(cluster_id="c", version=self.asked, topics=topics, brokers=())

    class Directory:
        node_id = "here"

        async def controller(self) -> Any:
            return controller

        def partition(self, actor: str) -> Any:
            if actor == "dead":
                raise Unavailable(f"no actor {actor!r} is running at the moment")
            return actor

    async def call(leader: Leader, left_ms: float) -> str:
        return leader.actor

    controller = Controller()
    routing = Routing(Directory(), SystemClock())  # type: ignore[arg-type]
    assert asyncio.run(routing.call_partition("t", 0, call, timeout_ms=10_000)) == "successor"


def test_what_only_the_caller_can_decide_is_not_tried_again() -> None:
    tries = []

    async def attempt(_: float) -> None:
        tries.append(1)
        raise NotEnoughBrokers("2 of 3 brokers can take one now")

    async def ask() -> None:
        routing = routing_to(Broker())
        await routing.retrying(attempt, timeout_ms=60_000, what="the controller", moved=lambda: None)

    with pytest.raises(NotEnoughBrokers):
        asyncio.run(ask())
    assert len(tries) == 1
