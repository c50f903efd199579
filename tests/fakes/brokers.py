"""Brokers that are only names, and where partitions' replicas are: what a controller decides of both, at its simplest.
A replica that comes in, or whose broker is heard again, is in sync at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raystream import messages as m
from raystream.errors import InvalidArgument, NotFound

NO_LEADER = -1


@dataclass
class Placed:
    """A partition's replicas, who of them is in sync and who leads."""

    replicas: tuple[int, ...] = (0,)
    isr: tuple[int, ...] = (0,)
    leader: int = 0
    leader_epoch: int = 1

    def led_by(self, broker_id: int) -> None:
        self.leader_epoch += broker_id != self.leader
        self.leader = broker_id


@dataclass
class FakeBroker:
    broker_id: int
    fenced: bool = False
    draining: bool = False
    rack: str = ""
    free_bytes: int = 1 << 30


class FakeBrokers:
    """The brokers 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self.by_id = {number: FakeBroker(number) for number in range(count)}

    def __getitem__(self, broker_id: int) -> FakeBroker:
        if broker_id not in self.by_id:
            raise NotFound(f"there is no broker {broker_id}")
        return self.by_id[broker_id]

    def metadata(self, partitions: Collection[Placed], *, node_id: str) -> tuple[m.BrokerMetadata, ...]:
        held = Counter(broker for placed in partitions for broker in placed.replicas)
        first = min(self._live(), default=NO_LEADER)
        return tuple(
            m.BrokerMetadata(
                broker_id=broker.broker_id,
                actor="broker",
                coordinator="coordinator" if broker.broker_id == first else "",
                node_id=node_id,
                node=f"host-{broker.broker_id}",
                data_dir="/data",
                free_bytes=-1 if broker.fenced else broker.free_bytes,
                pid=1,
                controller=broker.broker_id == first,
                replicas=held[broker.broker_id],
                fenced=broker.fenced,
                draining=broker.draining,
                rack=broker.rack,
            )
            for broker in self.by_id.values()
        )

    def place(self, number: int, factor: int) -> Placed:
        """A new partition: its replicas on brokers in turn."""
        replicas = tuple((number + turn) % len(self.by_id) for turn in range(factor))
        return Placed(replicas, replicas, replicas[0])

    # Who is heard ---------------------------------------------------------------------------------------------------

    def fence(self, broker_id: int, partitions: Collection[Placed]) -> None:
        """Its leads go to others in sync; the last one in sync stays so, and nobody leads."""
        self[broker_id].fenced = True
        for placed in partitions:
            placed.isr = tuple(broker for broker in placed.isr if broker != broker_id) or placed.isr
            if placed.leader == broker_id:
                placed.led_by(self._eligible(placed))

    def unfence(self, broker_id: int, partitions: Collection[Placed]) -> None:
        self[broker_id].fenced = False
        for placed in partitions:
            if placed.leader == NO_LEADER:
                placed.led_by(self._eligible(placed))
            if broker_id in placed.replicas and placed.leader != NO_LEADER:
                in_sync = {*placed.isr, broker_id}
                placed.isr = tuple(broker for broker in placed.replicas if broker in in_sync)

    def _live(self) -> list[int]:
        return [broker.broker_id for broker in self.by_id.values() if not broker.fenced]

    def _eligible(self, placed: Placed) -> int:
        live = self._live()
        return next((broker for broker in placed.replicas if broker in placed.isr and broker in live), NO_LEADER)

    # What an administrator asks for ---------------------------------------------------------------------------------

    def reassign(self, moves: Sequence[tuple[Placed, tuple[int, ...]]]) -> None:
        """All of it or nothing."""
        for placed, replicas in moves:
            for broker_id in replicas:
                if broker_id not in self.by_id:
                    raise InvalidArgument(f"{replicas} cannot hold a partition: there is no broker {broker_id}")
                if self.by_id[broker_id].draining and broker_id not in placed.replicas:
                    raise InvalidArgument(f"broker {broker_id} is being drained: it takes no new replicas")
        for placed, replicas in moves:
            self._move(placed, replicas)

    def _move(self, placed: Placed, replicas: tuple[int, ...]) -> None:
        """Only a leader can fill new replicas: where there is none, and none may lead, nothing is in sync but what
        was."""
        live = self._live()
        if placed.leader == NO_LEADER:
            placed.replicas = (*replicas, *(broker for broker in placed.isr if broker not in replicas))
            return
        placed.replicas = replicas
        placed.isr = tuple(broker for broker in replicas if broker in live)
        placed.led_by(placed.leader if placed.leader in placed.isr else self._eligible(placed))

    def bring_to(self, partitions: Collection[Placed], factor: int) -> None:
        able = [broker for broker in self._live() if not self.by_id[broker].draining]
        if not 1 <= factor <= len(able):
            raise InvalidArgument(f"replication_factor={factor}: this cluster has {len(able)} brokers")
        for placed in partitions:
            more = [broker for broker in able if broker not in placed.replicas]
            self._move(placed, (*placed.replicas, *more)[:factor])

    def elect(self, placed: Placed, *, unclean: bool) -> None:
        """The first replica where that is in sync; with `unclean` any live one, where nobody may lead."""
        live = self._live()
        if placed.replicas[0] in placed.isr and placed.replicas[0] in live:
            placed.led_by(placed.replicas[0])
        alive = [broker for broker in placed.replicas if broker in live]
        if placed.leader == NO_LEADER and unclean and alive:
            placed.isr = (alive[0],)
            placed.led_by(alive[0])

    def drain(self, broker_id: int, partitions: Collection[Placed], *, drain: bool) -> None:
        """Everything moves at once, each replica to the broker that holds the fewest."""
        broker = self[broker_id]
        if drain:
            able = [b for b in self._live() if not self.by_id[b].draining and b != broker_id]
            held = Counter(b for placed in partitions for b in placed.replicas)
            leaving = [placed for placed in partitions if broker_id in placed.replicas]
            if not able or any(not set(able) - set(placed.replicas) for placed in leaving):
                raise InvalidArgument(f"no broker would be left to take what broker {broker_id} holds: add one first")
            for placed in leaving:
                instead = min((b for b in able if b not in placed.replicas), key=lambda b: held[b])
                held[instead] += 1
                self._move(placed, tuple(instead if b == broker_id else b for b in placed.replicas))
        broker.draining = drain

    def remove(self, broker_id: int, partitions: Collection[Placed]) -> None:
        holding = sum(broker_id in placed.replicas for placed in partitions)
        self[broker_id]
        if holding:
            raise InvalidArgument(
                f"broker {broker_id} holds replicas of {holding} partitions: drain it, and remove it when it is empty"
            )
        if len(self.by_id) == 1:
            raise InvalidArgument(f"broker {broker_id} is the only one: a cluster cannot be without")
        del self.by_id[broker_id]
