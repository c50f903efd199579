"""Known ways to lose, double or misplace records, each planted alone in the product: a world must notice every one.

python -m tests.sim.cluster.bugs        prints by which seed each is caught, from 0 on
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from raystream import messages as m
from raystream.actors import coordinator as coordinating
from raystream.actors.leading import Leading
from raystream.actors.membership import Membership
from raystream.actors.offsets_log import OffsetsLog
from raystream.actors.raft_disk import RaftDisk
from raystream.client.buffer import Buffer
from raystream.core import membership, offset_expiry, offsets, quorum
from raystream.core import raft_leader as raft_leader_module
from raystream.core.elections import Elections
from raystream.core.leader import Leader
from raystream.core.raft_election import Election
from raystream.core.records import removed
from raystream.storage.log import Log
from raystream.storage.producer_state import Duplicate, Fresh, ProducerState
from tests.sim.cluster.run import run
from tests.sim.planted import Bug, caught, replaced, tell

AT_MOST: Final = 15
POWER: Final = ("blackout_at_sync", "blackout", "slow_disk")
DEATHS: Final = ("kill_partition_actor", "kill_machine", "isolate", "pause_machine")
ALONE: Final = ("isolate",)
NETWORK: Final = ("bad_network", "cut_link", "isolate")

# The partition --------------------------------------------------------------------------------------------------------


def _answered_once_flushed(self: Leading) -> None:
    written, self._written = self._written, []
    for waiting in written:
        waiting.ticket.answer(waiting.reply)
    _settle(self)


def _shown_once_flushed(self: Leading) -> None:
    self._replica.publish(self.core.flushed_end_offset)
    _settle(self)


def _never_synced(self: Log, handle: Any) -> None:
    self._directory_dirty = False


def _sequences_forgotten(self: Leading, *arguments: Any) -> None:
    _lead(self, *arguments)
    self._log.producers = ProducerState(self._clock)


def _everything_is_fresh(self: ProducerState, header: Any, *, age_ms: int = 0) -> Fresh | Duplicate:
    verdict = _check_sequence(self, header, age_ms=age_ms)
    return Fresh() if isinstance(verdict, Duplicate) else verdict


def _any_sequence(self: ProducerState, header: Any, *, age_ms: int = 0) -> Fresh | Duplicate:
    return Fresh()


def _reads_without_a_lease(self: Leader, now_ms: float, lease_until_ms: float) -> None:
    _check_read(self, now_ms, math.inf)


# The controller -------------------------------------------------------------------------------------------------------


def _same_leader_epoch(self: Elections, record: Any, **changes: Any) -> Any:
    return dataclasses.replace(_changed(self, record, **changes), leader_epoch=record.leader_epoch)


def _lease_from_the_answer(self: Membership) -> None:
    before = self._clock
    self._clock = SimpleNamespace(monotonic_ms=lambda: before.monotonic_ms() + 3_000.0)
    try:
        _send_heartbeat(self)
    finally:
        self._clock = before


# The metadata log -----------------------------------------------------------------------------------------------------


def _one_vote_is_enough(self: Election) -> bool:
    return True


def _entries_not_synced(self: RaftDisk, ready: Any) -> None:
    with mock.patch.object(self._handle, "sync", return_value=None):
        _write(self, ready)


def _one_disk_is_enough(values: Any) -> float:
    return float(max(values))


# Clients --------------------------------------------------------------------------------------------------------------


def _fetched_means_processed(self: Buffer, slot: Any) -> int:
    return int(slot.fetch_offset)


# Groups ---------------------------------------------------------------------------------------------------------------


def _not_written(self: OffsetsLog, pairs: Any) -> int:
    return self._end_offset


def _positions_may_go_back(group: Any, request: m.CommitRequest, topics: Any) -> Any:
    return _commit(group, dataclasses.replace(request, offsets=tuple(_back(o) for o in request.offsets)), topics)


def _commits_of_any_epoch(group: Any, request: m.CommitRequest) -> None:
    pass


def _given_before_it_is_let_go(member: Any, owned: Any, group: Any, *rest: Any) -> Any:
    with mock.patch.object(group, "holder", {}):
        return _reconciled(member, owned, group, *rest)


def _ahead_of_the_group(*asked: Any) -> Any:
    return tuple(dataclasses.replace(position, offset=position.offset + 2) for position in _positions(*asked))


def _back(position: Any) -> Any:
    return dataclasses.replace(position, offset=max(position.offset - 3, 0))


_settle, _lead = Leading._settle, Leading.__init__
_check_sequence, _check_read = ProducerState.check, Leader.check_read
_changed = Elections._changed
_reconciled, _positions = membership._reconciled, offsets.positions
_send_heartbeat, _write, _commit = Membership._send_heartbeat, RaftDisk.write, offsets.commit


def _expired_whoever_reads(groups: Any, wall_ms: int) -> Any:
    return tuple(removed(position) for group in groups for position in group.offsets.values())


BUGS: Final[Mapping[str, Bug]] = {
    "acks=all is answered before the isr has it": replaced(
        Leading, "_settle", _answered_once_flushed, focus=DEATHS, at=3
    ),
    "reads are served without a lease": replaced(Leader, "check_read", _reads_without_a_lease, focus=ALONE, at=8),
    "a lease counts from after the answer": replaced(
        Membership, "_send_heartbeat", _lease_from_the_answer, focus=ALONE, at=9
    ),
    "a new leader serves reads at once": replaced(
        Leader, "serves_reads", property(lambda leader: not leader.deposed), focus=DEATHS, at=3
    ),
    "a leader shows what only it has": replaced(Leading, "_settle", _shown_once_flushed, focus=DEATHS, at=3),
    "fsync is skipped": replaced(Log, "_make_durable", _never_synced, focus=POWER),
    "sequences are lost at failover": replaced(Leading, "__init__", _sequences_forgotten, focus=DEATHS, at=1),
    "a repeated batch is written again": replaced(ProducerState, "check", _everything_is_fresh, focus=NETWORK),
    "sequences are not checked": replaced(ProducerState, "check", _any_sequence, focus=NETWORK),
    "an election keeps the leader epoch": replaced(Elections, "_changed", _same_leader_epoch, focus=DEATHS),
    "an election is won with one vote": replaced(
        Election, "is_won", property(_one_vote_is_enough), focus=NETWORK, at=5
    ),
    "metadata is committed on one disk": replaced(
        raft_leader_module,
        "quorum",
        SimpleNamespace(**{**vars(quorum), "reached": _one_disk_is_enough}),
        focus=DEATHS,
        at=99,
    ),
    "the metadata log is not synced": replaced(RaftDisk, "write", _entries_not_synced, focus=POWER),
    "what was fetched counts as processed": replaced(Buffer, "processed", _fetched_means_processed, at=8),
    "the coordinator answers and writes nothing": replaced(
        OffsetsLog, "append", _not_written, focus=("kill_coordinator",)
    ),
    "a commit is not fenced by the member's epoch": replaced(
        offsets, "_check_member", _commits_of_any_epoch, focus=("pause_client",), at=22
    ),
    "a partition is given before it is let go": replaced(membership, "_reconciled", _given_before_it_is_let_go, at=3),
    "a member begins ahead of its group": replaced(offsets, "positions", _ahead_of_the_group, at=1),
    "positions expire while a group reads on": replaced(
        offset_expiry, "expired", _expired_whoever_reads, (coordinating, "EXPIRY_LOOK_EVERY_MS", 2_000)
    ),
    "a commit is answered and another one written": replaced(offsets, "commit", _positions_may_go_back, at=2),
}
"""By what is wrong."""


def line(name: str) -> str:
    """How many seeds it takes, and what is said then."""
    return caught(run, BUGS, name, at_most=AT_MOST)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.bugs", *sys.argv[1:]])
    tell(line, sys.argv[1:] or BUGS)
