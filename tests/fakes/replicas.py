"""Replicas of one partition on disks in memory, and what goes between them as a queue that a test works off."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raystream import messages as m
from raystream.actors.following import Following
from raystream.actors.leading import Append, Leading, Then
from raystream.actors.replica import Replica
from raystream.actors.writer import Ticket
from raystream.clock import ManualClock
from raystream.errors import ActorLost, RaystreamError
from raystream.schema import RAW_SCHEMA
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.stored import Stored
from tests.fakes.logs import DIRECTORY, TOPIC_ID, message, read_all


class Deaf:
    """An outbox for a replica that has nobody to talk to."""

    def replicate(self, actor: str, request: Any, batches: Any, timeout_ms: float, then: Then) -> None:
        raise AssertionError(f"nobody should be sent {request}")

    def alter_isr(self, broker: str, request: Any, timeout_ms: float, then: Then) -> None:
        raise AssertionError(f"nobody should be asked for {request}")

    def beside(self, work: Callable[[], Any], then: Then) -> None:
        raise AssertionError("nothing should be read for others")


class Replicas:
    """Several replicas, whose controller is the test: it says who leads since when, and takes every ISR."""

    def __init__(self, count: int = 3, *, min_insync_replicas: int = 1, isr: tuple[int, ...] | None = None) -> None:
        self.clock = ManualClock()
        self.files = [MemoryFiles() for _ in range(count)]
        self.brokers = tuple(range(count))
        self.isr = self.brokers if isr is None else isr
        self.leader = 0
        self.epoch = 1
        self.partition_epoch = 1
        self.incarnations = dict.fromkeys(self.brokers, 1)
        self.min_insync_replicas = min_insync_replicas
        self.queue: list[Callable[[], None]] = []
        self.held: list[Callable[[], None]] = []
        self.cut_off: set[int] = set()
        self.replicas: dict[int, Replica] = {}
        for broker in self.brokers:
            self.start(broker)

    # The controller's part ------------------------------------------------------------------------------------------

    def spec(self, broker: int) -> m.ReplicaSpec:
        return m.ReplicaSpec(
            topic="t",
            topic_id=TOPIC_ID,
            partition=0,
            directory=DIRECTORY,
            leader_epoch=self.epoch,
            incarnation=1,
            config={},
            schemas=(RAW_SCHEMA.serialize().to_pybytes(),),
            broker_id=broker,
            broker_incarnation=self.incarnations[broker],
            broker="controller",
            leader=self.leader,
            replicas=self.brokers,
            isr=self.isr,
            partition_epoch=self.partition_epoch,
            actors=tuple((each, str(each)) for each in self.brokers if each != broker),
            min_insync_replicas=self.min_insync_replicas,
        )

    def start(self, broker: int) -> Replica:
        replica = Replica(self.spec(broker), self.files[broker], self.clock, _Outbox(self, broker))
        replica.open()
        self.replicas[broker] = replica
        return replica

    def announce(self) -> None:
        for broker, replica in self.replicas.items():
            replica.reconfigure(self.spec(broker))

    def elect(self, leader: int) -> None:
        self.leader, self.epoch, self.partition_epoch = leader, self.epoch + 1, self.partition_epoch + 1
        self.announce()

    def set_isr(self, *isr: int) -> None:
        self.isr, self.partition_epoch = isr, self.partition_epoch + 1
        self.announce()

    def stop(self, broker: int) -> None:
        self.replicas.pop(broker).close()

    def crash(self, broker: int, rng: random.Random) -> None:
        """Power is lost: what was not synced may be gone."""
        del self.replicas[broker]
        self.files[broker].crash(rng)
        self.incarnations[broker] += 1

    # The clients' part ----------------------------------------------------------------------------------------------

    def append(self, value: bytes, producer: tuple[int, int, int] = (-1, -1, -1), **fields: Any) -> Ticket[Append]:
        leader = self.replicas[self.leader]
        request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=self.epoch, **fields)
        ticket = Ticket(leader.check(request, message([value], producer=producer)[0]))
        leader.offer(ticket)
        leader.commit()
        return ticket

    def stored(self, broker: int) -> list[tuple[int, bytes]]:
        return read_all(self.replicas[broker].log)

    # Time and the network -------------------------------------------------------------------------------------------

    def work(self, rounds: int = 1_000) -> None:
        """Delivers what is under way, and what that leads to, until nothing is."""
        for _ in range(rounds):
            if not self.queue:
                return
            self.queue.pop(0)()
        raise AssertionError("the replicas do not come to rest")

    def pass_time(self, milliseconds: int, step: int = 100) -> None:
        for _ in range(int(milliseconds // step)):
            self.clock.advance(step)
            for replica in list(self.replicas.values()):
                replica.commit()
            self.queue += self.held
            self.held = []
            self.work()

    def leading(self) -> Leading:
        role = self.replicas[self.leader].role
        assert isinstance(role, Leading)
        return role

    def following(self, broker: int) -> Following:
        role = self.replicas[broker].role
        assert isinstance(role, Following)
        return role


class _Outbox:
    def __init__(self, world: Replicas, broker: int) -> None:
        self._world = world
        self._broker = broker

    def replicate(
        self, actor: str, request: m.ReplicateRequest, batches: bytes | Stored, timeout_ms: float, then: Then
    ) -> None:
        world, to = self._world, int(actor)

        def deliver() -> None:
            follower = world.replicas.get(to)
            if follower is None or {to, self._broker} & world.cut_off:
                then(None, ActorLost("nobody is there"))
                return
            data = batches.read() if isinstance(batches, Stored) else batches
            ticket: Ticket[Any] = Ticket(follower.check_replicated(request, data))
            follower.offer(ticket)
            follower.commit()
            world.queue.append(lambda: self._answer(ticket, then))

        world.queue.append(deliver)

    def _answer(self, ticket: Ticket[Any], then: Then) -> None:
        if not ticket.settled:  # an early request waits for the one before it, or for time to pass
            self._world.held.append(lambda: self._answer(ticket, then))
            return
        try:
            answer = ticket.wait(0)
        except RaystreamError as error:
            then(None, error)
        else:
            then(answer, None)

    def alter_isr(self, broker: str, request: m.AlterIsrRequest, timeout_ms: float, then: Then) -> None:
        def decide() -> None:
            world = self._world
            if request.partition_epoch == world.partition_epoch and self._broker not in world.cut_off:
                world.set_isr(*(member for member, _ in request.isr))
                then(m.Done(), None)
            else:
                then(None, ActorLost("no answer"))

        self._world.queue.append(decide)

    def beside(self, work: Callable[[], Any], then: Then) -> None:
        self._world.queue.append(lambda: then(work(), None))
