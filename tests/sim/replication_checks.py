"""What must hold after every event of a simulated replicated partition, whatever happened: see `Checks`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from raystream.core.follower import Follower
from raystream.core.leader import Leader
from raystream.core.metadata import PartitionRecord
from tests.sim.replication_log import Batch, ModelLog
from tests.sim.world import require


class Replica(Protocol):
    """What the checks look at: a broker with its disk, and while it runs and has registered, its role."""

    id: int
    log: ModelLog
    lost: bool
    """Its disk does not hold what it said it does, and the controller has not heard of it yet."""
    role: Leader | Follower | None
    checked: tuple[Leader | Follower | None, int]
    """The role that was looked at last, and its high watermark then."""


class Checks:
    """Everything that was ever seen in a run.

    One leader per epoch, and one batch at an epoch's offset, everywhere and for ever · what was committed once is the
    same wherever a high watermark covers it, and on that disk · no high watermark moves back · the disk of every member
    of ISR and ELR holds all that is committed · a leader has all that was committed, and all that was acknowledged with
    acks=all, when it begins · a leader that serves reads shows all that any earlier one has shown · nothing is
    quarantined, for no disk is corrupt here.
    """

    def __init__(self, brokers: Mapping[int, Replica]) -> None:
        self._brokers = brokers
        self._leaders: dict[int, tuple[int, int]] = {}
        self._written: dict[tuple[int, int], Batch] = {}
        self._shown: dict[int, int] = {}
        """By leader epoch, the greatest high watermark that its leader has had."""
        self.committed: list[Batch] = []
        """By offset."""
        self._committed_in: list[int] = []
        """By whose leader; no later leader commits below what an earlier one does."""
        self.acknowledged: dict[int, tuple[Batch, int]] = {}
        """By offset, with the leader epoch that it was acknowledged in."""
        self.deleted_before = 0
        self.record: PartitionRecord | None = None
        self.happened: Counter[str] = Counter()
        """How often some things did, to see that a run was worth it."""

    def decided(self, record: PartitionRecord) -> None:
        """The controller has changed the partition."""
        before, self.record = self.record, record
        if before is not None:
            require(record.partition_epoch > before.partition_epoch, f"partition epoch: {before} became {record}")
            moved = record.leader_epoch - before.leader_epoch
            require(moved >= (record.leader != before.leader), f"leader epoch: {before} became {record}")
            self.happened["leader changed"] += record.leader != before.leader
            self.happened["isr shrunk"] += not set(before.isr) <= set(record.isr)
            self.happened["isr grown"] += not set(record.isr) <= set(before.isr)
            self.happened["elected from the elr"] += record.leader in before.elr
            self.happened["reassigned"] += bool(before.removing) and not record.removing
        self.happened["elr in use"] += bool(record.elr)
        self._members_hold(0)

    def led(self, broker: Replica, leader: Leader, incarnation: int) -> None:
        """A broker begins to lead."""
        first = self._leaders.setdefault(leader.leader_epoch, (broker.id, incarnation))
        require(
            first == (broker.id, incarnation),
            f"one leader per epoch: {first} and {(broker.id, incarnation)} lead epoch {leader.leader_epoch}",
        )
        earlier = sum(epoch < leader.leader_epoch for epoch in self._committed_in)
        require(self._agrees(broker.log, 0, earlier), f"leader completeness: {self._lacks(broker)}")
        missing = [
            batch
            for offset, (batch, epoch) in self.acknowledged.items()
            if offset >= broker.log.start
            and epoch < leader.leader_epoch
            and (offset >= broker.log.end or broker.log.cells[offset - broker.log.start] != batch)
        ]
        require(not missing, f"leader completeness: broker {broker.id} leads without the acknowledged {missing[:1]}")

    def wrote(self, batch: Batch) -> None:
        """A batch was written, by a leader or a follower."""
        first = self._written.setdefault((batch.epoch, batch.base_offset), batch)
        require(first == batch, f"log matching: {first} and {batch}")

    def cut(self, broker: Replica) -> None:
        """Something went from a log's end."""
        role = broker.role
        self.happened["log cut"] += 1
        if role is not None:
            require(broker.log.end >= role.high_watermark, f"broker {broker.id} cuts what is committed")
        self._members_hold(0)

    def stepped(self, broker: Replica) -> None:
        """After an event at `broker`."""
        role = broker.role
        if role is None:
            return
        last_role, checked = broker.checked
        reached = role.high_watermark
        if role is not last_role:
            checked = 0
        elif reached == checked and not isinstance(role, Leader):
            require(not role.quarantined, f"broker {broker.id} is quarantined")
            return
        require(reached >= checked, f"high watermark: broker {broker.id} goes back from {checked} to {reached}")
        require(reached <= broker.log.flushed, f"broker {broker.id}'s high watermark {reached} is not on its disk")
        before = len(self.committed)
        if reached > before:
            self.committed += broker.log.cells[before - broker.log.start : reached - broker.log.start]
            self._committed_in += [role.leader_epoch] * (reached - before)
            self._members_hold(before)
        if reached > checked:
            require(
                self._agrees(broker.log, checked, reached),
                f"committed records: {self._lacks(broker)}, below its high watermark {reached}",
            )
        broker.checked = (role, reached)
        if isinstance(role, Leader):
            self._shows(broker, role)

    def _shows(self, broker: Replica, leader: Leader) -> None:
        self._shown[leader.leader_epoch] = leader.high_watermark
        if leader.serves_reads:
            earlier = max((shown for epoch, shown in self._shown.items() if epoch < leader.leader_epoch), default=0)
            require(
                leader.high_watermark >= earlier,
                f"reads: broker {broker.id} serves up to {leader.high_watermark}, an earlier leader did to {earlier}",
            )

    def _members_hold(self, first: int) -> None:
        if self.record is None:
            return
        for member in (*self.record.isr, *self.record.elr):
            broker = self._brokers[member]
            held = broker.log.flushed >= len(self.committed) and self._agrees(broker.log, first, len(self.committed))
            require(broker.lost or held, f"isr and elr: {self._lacks(broker)}: {self.record}")

    def _agrees(self, log: ModelLog, first: int, end: int) -> bool:
        first = max(first, log.start)
        if log.start > self.deleted_before or (log.end < end):
            return False
        return first >= end or log.cells[first - log.start : end - log.start] == self.committed[first:end]

    def _lacks(self, broker: Replica) -> str:
        log = broker.log
        pairs = zip(log.cells, self.committed[log.start :], strict=False)
        same = next((log.start + place for place, (a, b) in enumerate(pairs) if a != b), log.end)
        return (
            f"broker {broker.id} has from {log.start} to {same} (flushed to {log.flushed}, end {log.end}) what is "
            f"committed to {len(self.committed)}"
        )
