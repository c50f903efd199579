"""What must hold in a world at every moment, looked at from inside; `python -m raystream.testing.checker` looks from
outside.

    committed   what is below a replica's high watermark is the same on every replica, for ever
    leaders     a leader epoch of a partition has one leader
    stale       who serves a partition's reads shows what was committed `STALE_S` before, or more
    metadata    the brokers' metadata logs are prefixes of each other
    lease       nobody is fenced while its lease runs
    positions   a group's position does not move back, nor go while the group has members
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from raystream.actors.controlling import SESSION_TIMEOUT_MS
from raystream.actors.leading import Leading
from raystream.actors.metadata import Metadata
from raystream.actors.replica import Replica
from raystream.batch import walk
from raystream.core.group_records import OffsetRecord
from raystream.core.groups import Groups
from raystream.core.metadata import BrokerRecord
from raystream.core.records import Removed
from raystream.errors import RaystreamError
from tests.sim.world import require

if TYPE_CHECKING:
    from tests.sim.cluster.world import World

LOOK_S = 0.05
STALE_S = SESSION_TIMEOUT_MS / 1e3
"""A leader that has been replaced may show so old a state, and no older."""


class Checks:
    """Watches one world, while it is `watching`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._committed: dict[tuple[str, int], dict[int, tuple[int, int, int]]] = {}
        self._ends: dict[tuple[str, int], list[tuple[float, int]]] = {}
        """When the leaders' high watermark has come where."""
        self._leaders: dict[tuple[str, int, int], int] = {}
        self._entries: list[bytes] = []
        self._applied: dict[int, int] = {}
        self._fenced: set[tuple[int, int]] = set()
        self._wrong = ""
        """What was wrong first: an actor in which it comes about may stop at it, as at any error, and be replaced."""
        self.looks = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at what the product's objects do, as they do it."""
        publish, commit, apply, restore = Replica.publish, Leading.__init__, Metadata.apply, Metadata.restore
        replay = Groups.replay
        checks = self

        def publish_and_check(replica: Replica, high_watermark: int) -> None:
            before = replica.high_watermark
            publish(replica, high_watermark)
            checks.published(replica, before)

        def lead_and_check(leading: Leading, replica: Replica, *rest: Any) -> None:
            commit(leading, replica, *rest)
            checks.leads(replica)

        def apply_and_check(metadata: Metadata, entries: Any) -> None:
            apply(metadata, entries)
            checks.applied(metadata, entries)

        def restore_and_check(metadata: Metadata, data: bytes) -> None:
            restore(metadata, data)
            checks.restored(metadata)

        def replay_and_check(groups: Groups, record: Any, now_ms: float) -> None:
            before = _position(groups, record)
            checks._require(not _forgets(groups, record), f"positions: {record} goes, and its group has members")
            replay(groups, record, now_ms)
            checks._require(before <= _position(groups, record), f"positions: {record} moves back, from {before}")

        patched: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = [
            (Replica, "publish", publish, publish_and_check),
            (Leading, "__init__", commit, lead_and_check),
            (Metadata, "apply", apply, apply_and_check),
            (Metadata, "restore", restore, restore_and_check),
            (Groups, "replay", replay, replay_and_check),
        ]
        for owner, name, _, checked in patched:
            setattr(owner, name, checked)
        try:
            yield
        finally:
            for owner, name, real, _ in patched:
                setattr(owner, name, real)

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            self._wrong = self._wrong or message
            require(holds, message)

    # As it happens --------------------------------------------------------------------------------------------------

    def published(self, replica: Replica, before: int) -> None:
        """A high watermark has moved: what is below it now is committed."""
        start = max(before, replica.log.start_offset)
        end = replica.high_watermark
        self._require(end <= replica.log.end_offset, f"{replica.name}: high watermark {end} past the end")
        if replica.spec.leader == replica.spec.broker_id:
            ends = self._ends.setdefault((replica.spec.topic_id, replica.spec.partition), [])
            if not ends or end > ends[-1][1]:
                ends.append((self._world.kernel.now_s, end))
        known = self._committed.setdefault((replica.spec.topic_id, replica.spec.partition), {})
        for header in self._headers(replica, start, end):
            found = (header.next_offset, header.leader_epoch, header.producer_crc)
            committed = known.setdefault(header.base_offset, found)
            self._require(
                committed == found,
                f"committed: {replica.name} on broker {replica.spec.broker_id} has (end, epoch, CRC) {found} at offset "
                f"{header.base_offset}, committed was {committed}",
            )

    def _headers(self, replica: Replica, start: int, end: int) -> Iterator[Any]:
        while start < end:
            spans = replica.log.read(start, max_bytes=1 << 20, end_offset=end)
            if not spans:
                return
            for span in spans:
                for header, _ in walk(memoryview(replica.log.read_bytes(span)).cast("B")):
                    yield header
                    start = header.next_offset

    def leads(self, replica: Replica) -> None:
        """A replica takes the lead."""
        spec = replica.spec
        leader = self._leaders.setdefault((spec.topic_id, spec.partition, spec.leader_epoch), spec.broker_id)
        self._require(
            leader == spec.broker_id,
            f"leaders: brokers {leader} and {spec.broker_id} both lead {replica.name} in epoch {spec.leader_epoch}",
        )

    def applied(self, metadata: Metadata, entries: Any) -> None:
        """A broker has heard of more of the metadata log."""
        position = self._applied.get(id(metadata), 0)
        for entry in entries:
            if position < len(self._entries):
                self._require(self._entries[position] == entry, f"metadata: two entries stand at place {position}")
            else:
                self._entries.append(entry)
                self._decided(metadata)
            position += 1
        self._applied[id(metadata)] = position

    def restored(self, metadata: Metadata) -> None:
        """A broker has its metadata from a snapshot; worlds are too short for other snapshots than the empty first."""
        self._applied[id(metadata)] = 0

    def _decided(self, metadata: Metadata) -> None:
        world = self._world
        with metadata.image() as image:
            brokers: list[BrokerRecord] = list(image.brokers.values())
        for broker in brokers:
            if broker.fenced and (broker.broker_id, broker.incarnation) not in self._fenced:
                self._fenced.add((broker.broker_id, broker.incarnation))
                for process, replica in world.replicas():
                    spec = replica.spec
                    mine = (spec.broker_id, spec.broker_incarnation) == (broker.broker_id, broker.incarnation)
                    if mine and len(spec.replicas) > 1 and isinstance(replica.role, Leading):
                        with process.current():
                            valid = replica.lease_until_ms() > replica.clock.monotonic_ms()
                        self._require(not valid, f"lease: broker {broker.broker_id} is fenced while its lease runs")

    # Now and then ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """At everybody, at one moment."""
        self.looks += 1
        require(not self._wrong, self._wrong)
        now_s = self._world.kernel.now_s
        for process, replica in self._world.replicas():
            if process.paused or not isinstance(replica.role, Leading):
                continue
            with process.current():
                try:
                    replica.role.check_read()
                except RaystreamError:
                    continue
            ends = self._ends.get((replica.spec.topic_id, replica.spec.partition), [])
            old = [end for when_s, end in ends if when_s <= now_s - STALE_S]
            self._require(
                not old or replica.high_watermark >= old[-1],
                f"lease: broker {replica.spec.broker_id} serves {replica.name} up to {replica.high_watermark}, "
                f"{STALE_S} s ago it went to {old[-1:]}",
            )


def _forgets(groups: Groups, record: Any) -> bool:
    """Whether a position goes of a group that is in use. Worlds delete no topics."""
    if not isinstance(record, Removed) or record.kind != OffsetRecord.KIND:
        return False
    group = groups._groups.get(record.identity[0])
    return group is not None and bool(group.members)


def _position(groups: Groups, record: Any) -> int:
    if not isinstance(record, OffsetRecord) or record.group not in groups._groups:
        return -1
    known = groups._groups[record.group].offsets.get((record.topic, record.partition))
    return -1 if known is None else known.offset
