"""Known ways to lose, double or misplace records, each planted alone in the product: a world must notice every one.

python -m tests.sim.cluster.bugs        prints by which seed each is caught, from 0 on
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from raystream import messages as m
from raystream.actors.leading import Leading
from raystream.actors.membership import Membership
from raystream.actors.metadata import Metadata
from raystream.actors.offsets_log import OffsetsLog
from raystream.actors.raft_disk import RaftDisk
from raystream.actors.replica import Replica
from raystream.core import offsets, quorum
from raystream.core import raft_leader as raft_leader_module
from raystream.core.elections import NO_LEADER, Elections
from raystream.core.follower import Follower
from raystream.core.leader import Leader
from raystream.core.liveness import Grants
from raystream.core.raft_election import Election
from raystream.core.replication import Progress
from raystream.storage.log import Log
from raystream.storage.producer_state import Duplicate, Fresh, ProducerState
from tests.sim.cluster.run import run
from tests.sim.planted import Bug, replaced, seeds_to_catch

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


def _any_epoch(self: Follower, request: Any) -> None:
    _check_epoch(self, dataclasses.replace(request, leader_epoch=self.leader_epoch))


def _reads_at_any_epoch_and_role(self: Replica, follower: bool) -> None:
    pass


def _reads_without_a_lease(self: Leader, now_ms: float, lease_until_ms: float) -> None:
    _check_read(self, now_ms, math.inf)


def _flushed_means_written(self: Follower, request: Any, *, gap: bool = False) -> Any:
    return dataclasses.replace(_answer(self, request, gap=gap), flushed_end_offset=self.end_offset)


def _own_log_counted_at_once(self: Leader, member: int) -> int:
    return self.end_offset if member == self.broker_id else _holds(self, member)


def _cut_to_the_high_watermark(self: Follower, request: Any) -> int | None:
    return _truncation(self, dataclasses.replace(request, offset=min(self.high_watermark, self.end_offset)))


def _cut_to_the_high_watermark_done(self: Follower, request: Any) -> Any:
    return _truncated(self, dataclasses.replace(request, offset=min(self.high_watermark, self.end_offset)))


def _no_lease_for_who_was_alone(self: Metadata, key: Any, broker_id: int, directory: str, lease_path: str) -> Any:
    spec = _spec(self, key, broker_id, directory, lease_path)
    return dataclasses.replace(spec, lease_path="") if spec is not None and len(spec.replicas) == 1 else spec


# The controller -------------------------------------------------------------------------------------------------------


def _anybody_is_eligible(self: Elections, replicas: Any, isr: Any, elr: Any, **named: Any) -> int:
    return _eligible(self, replicas, replicas, elr, **named)


def _any_isr_change(self: Elections, topic_id: str, partition: int, change: Any) -> Any:
    record = self._image.partition(topic_id, partition)
    return _alter_isr(
        self,
        topic_id,
        partition,
        dataclasses.replace(change, partition_epoch=record.partition_epoch, leader_epoch=record.leader_epoch)
        if record.leader != NO_LEADER
        else change,
    )


def _same_leader_epoch(self: Elections, record: Any, **changes: Any) -> Any:
    return dataclasses.replace(_changed(self, record, **changes), leader_epoch=record.leader_epoch)


def _lease_at_once(self: Grants, version: int, until_ms: float) -> None:
    _granted(self, -1, until_ms)


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


def _votes_in_memory_only(self: RaftDisk, ready: Any) -> None:
    _write(self, dataclasses.replace(ready, hard_state=None))


def _one_disk_is_enough(values: Any) -> float:
    return float(max(values))


# Groups ---------------------------------------------------------------------------------------------------------------


def _any_member(group: Any, request: Any) -> None:
    pass


def _whoever_comes_first(self: OffsetsLog) -> None:
    pass


def _anywhere(self: Leading, work: Any) -> None:
    pass


def _positions_may_go_back(group: Any, request: m.CommitRequest, topics: Any) -> Any:
    return _commit(group, dataclasses.replace(request, offsets=tuple(_back(o) for o in request.offsets)), topics)


def _back(position: Any) -> Any:
    return dataclasses.replace(position, offset=max(position.offset - 3, 0))


_settle, _lead, _spec = Leading._settle, Leading.__init__, Metadata.spec
_check_sequence, _check_epoch, _check_read = ProducerState.check, Follower.check, Leader.check_read
_answer, _holds, _truncation, _truncated = Follower.answer, Leader._holds, Follower.truncation, Follower.truncated
_alter_isr, _changed, _eligible = Elections.alter_isr, Elections._changed, Elections._eligible
_granted = Grants.granted
_send_heartbeat, _write, _commit = Membership._send_heartbeat, RaftDisk.write, offsets.commit

BUGS: Final[Mapping[str, Bug]] = {
    "acks=all is answered before the isr has it": replaced(Leading, "_settle", _answered_once_flushed, focus=DEATHS),
    "the high watermark counts the committed isr only": replaced(
        Leader, "maximal_isr", property(lambda leader: frozenset(leader.state.isr)), focus=DEATHS
    ),
    "the high watermark counts what the leader has not flushed": replaced(
        Leader, "_holds", _own_log_counted_at_once, focus=POWER
    ),
    "a follower says flushed and means written": replaced(Follower, "answer", _flushed_means_written, focus=POWER),
    "a follower cuts its log at its high watermark": replaced(
        Follower,
        "truncation",
        _cut_to_the_high_watermark,
        (Follower, "truncated", _cut_to_the_high_watermark_done),
    ),
    "a follower takes batches of any leader epoch": replaced(Follower, "check", _any_epoch, focus=DEATHS),
    "reads are served without a lease": replaced(Leader, "check_read", _reads_without_a_lease, focus=ALONE),
    "a lease counts from after the answer": replaced(
        Membership, "_send_heartbeat", _lease_from_the_answer, focus=ALONE
    ),
    "a lease counts before the replicas are told": replaced(Grants, "granted", _lease_at_once, focus=ALONE),
    "who was alone in a partition has no lease later": replaced(
        Metadata, "spec", _no_lease_for_who_was_alone, focus=ALONE
    ),
    "a new leader serves reads at once": replaced(
        Leader, "serves_reads", property(lambda leader: not leader.deposed), focus=DEATHS
    ),
    "fsync is skipped": replaced(Log, "_make_durable", _never_synced, focus=POWER),
    "sequences are lost at failover": replaced(Leading, "__init__", _sequences_forgotten, focus=DEATHS),
    "a repeated batch is written again": replaced(ProducerState, "check", _everything_is_fresh, focus=NETWORK),
    "sequences are not checked": replaced(ProducerState, "check", _any_sequence, focus=NETWORK),
    "any live replica is elected": replaced(Elections, "_eligible", _anybody_is_eligible, focus=DEATHS),
    "an election keeps the leader epoch": replaced(Elections, "_changed", _same_leader_epoch, focus=DEATHS),
    "an isr change of an earlier leader counts": replaced(Elections, "alter_isr", _any_isr_change, focus=DEATHS),
    "an answer of an earlier life counts": replaced(Progress, "live", lambda progress, incarnation: True),
    "an election is won with one vote": replaced(Election, "is_won", property(_one_vote_is_enough), focus=NETWORK),
    "metadata is committed on one disk": replaced(
        raft_leader_module, "quorum", SimpleNamespace(**{**vars(quorum), "reached": _one_disk_is_enough}), focus=DEATHS
    ),
    "votes are not written down": replaced(RaftDisk, "write", _votes_in_memory_only, focus=("kill_broker", "isolate")),
    "a commit is not fenced by its member": replaced(offsets, "_check_member", _any_member),
    "the coordinator's log takes rows anywhere": replaced(
        Leading, "_check_place", _anywhere, (OffsetsLog, "confirm", _whoever_comes_first), focus=DEATHS
    ),
    "a commit is answered and another one written": replaced(offsets, "commit", _positions_may_go_back),
}
"""By what is wrong."""


def caught(name: str) -> str:
    """How many seeds it takes, and what is said then."""
    bug = BUGS[name]
    found = seeds_to_catch(run, bug, first=bug.at, at_most=1) or seeds_to_catch(run, bug, at_most=AT_MOST)
    said = f"not caught by {AT_MOST} seeds" if found is None else f"{found[0]:4}  {found[1].splitlines()[0][:110]}"
    return f"{name:60} {said}"


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.bugs", *sys.argv[1:]])
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for line in pool.imap(caught, sys.argv[1:] or BUGS, chunksize=1):
            print(line, flush=True)
