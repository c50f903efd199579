"""Known ways to get replication wrong, each planted from outside: the simulation must catch every one of them.

A bug is a shell that misbehaves, or a method of the core that is replaced while the bug is planted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raystream.core import leader as leader_module
from raystream.core.elections import NO_LEADER, Elections, Records
from raystream.core.follower import Follower
from raystream.core.leader import Leader
from raystream.core.metadata import PartitionRecord
from raystream.core.replication import (
    Answer,
    IsrChange,
    Probe,
    ProbeAnswer,
    Progress,
    Request,
    Send,
    Truncate,
    truncation_point,
)
from tests.sim.planted import Bug, main, replaced
from tests.sim.replication import Shell, run
from tests.sim.replication_broker import Broker, News

# The leader -----------------------------------------------------------------------------------------------------------


def _own_log_counted_at_once(self: Leader, member: int) -> int:
    return self.end_offset if member == self.broker_id else _holds(self, member)


def _join_below_the_epochs_start(self: Leader, follower: Progress, now_ms: float) -> bool:
    # Who has caught up in this epoch is past its start, so that this bug takes both.
    return follower.matched_end >= self.high_watermark and now_ms >= follower.held_until_ms


def _join_below_the_high_watermark(self: Leader, follower: Progress, now_ms: float) -> bool:
    return follower.matched_end >= 0 and now_ms >= follower.held_until_ms


def _answers_of_any_epoch(self: Leader, answer: Answer) -> bool:
    return _on_answer(self, dataclasses.replace(answer, leader_epoch=self.leader_epoch))


def _probe_answers_of_any_epoch(self: Leader, answer: ProbeAnswer) -> None:
    _leader_probed(self, dataclasses.replace(answer, leader_epoch=self.leader_epoch))


def _refused_and_forgotten(self: Leader, change: IsrChange, now_ms: float) -> None:
    _refused(self, change, now_ms)
    self._claimed = frozenset()


def _any_life_answers(self: Progress, incarnation: int) -> bool:
    return True


def _what_an_earlier_life_held_counts(self: Leader, answer: ProbeAnswer) -> None:
    known = self.progress(answer.follower)
    before = -1 if known is None else known.matched_end
    _leader_probed(self, answer)
    if known is not None:
        known.matched_end = before


def _lengths_compared(_: Sequence[Any], leader_end: int, __: Sequence[Any], follower_end: int) -> int:
    return min(leader_end, follower_end)


def _nothing_shared_means_nothing_kept(
    leader_epochs: Sequence[Any], leader_end: int, follower_epochs: Sequence[Any], follower_end: int
) -> int:
    common = {epoch for epoch, _ in leader_epochs} & {epoch for epoch, _ in follower_epochs}
    return truncation_point(leader_epochs, leader_end, follower_epochs, follower_end) if common else 0


def _lease_from_the_answer(self: Broker, sent_ms: float, news: News, **named: Any) -> None:
    _heard(self, self.now_ms(), news, **named)


def _reads_without_a_lease(self: Leader, now_ms: float, lease_until_ms: float) -> None:
    _check_read(self, now_ms, math.inf)


# The follower ---------------------------------------------------------------------------------------------------------


def _flushed_means_written(self: Follower, request: Truncate | Send, *, gap: bool = False) -> Answer:
    return dataclasses.replace(_answer(self, request, gap=gap), flushed_end_offset=self.end_offset)


def _any_epoch_checked(self: Follower, request: Request) -> None:
    _check(self, dataclasses.replace(request, leader_epoch=self.leader_epoch))


def _cut_to_the_high_watermark(self: Follower, request: Truncate) -> int | None:
    return _truncation(self, dataclasses.replace(request, offset=min(self.high_watermark, self.end_offset)))


def _cut_to_the_high_watermark_done(self: Follower, request: Truncate) -> Answer:
    return _truncated(self, dataclasses.replace(request, offset=min(self.high_watermark, self.end_offset)))


def _cut_again(self: Follower, request: Truncate) -> int | None:
    self.aligned = False
    return _truncation(self, request)


def _cut_by_any_round(self: Follower, request: Truncate) -> int | None:
    self._probed = request.round
    return _truncation(self, request)


def _read_before_it_is_flushed(self: Follower) -> None:
    if self.aligned:
        self.high_watermark = max(self.high_watermark, min(self._leader_high_watermark, self.end_offset))


def _gaps_are_aligned(self: Follower, request: Probe) -> ProbeAnswer:
    answer = _follower_probed(self, request)
    self.aligned = True
    return answer


# The controller -------------------------------------------------------------------------------------------------------


def _any_partition_epoch(self: Elections, topic_id: str, number: int, change: IsrChange) -> Records:
    known = self._image.partition(topic_id, number).partition_epoch
    return _alter_isr(self, topic_id, number, dataclasses.replace(change, partition_epoch=known))


def _any_life_joins(self: Elections, broker_id: int, incarnation: int) -> bool:
    return self._is_live(broker_id)


def _anybody_is_eligible(
    self: Elections, replicas: Sequence[int], *_: Any, gone: int = NO_LEADER, back: int = -1
) -> int:
    live = (broker for broker in replicas if broker != gone and (broker == back or self._is_live(broker)))
    return next(live, NO_LEADER)


def _elr_for_ever(self: Elections, record: PartitionRecord, replicas: Sequence[int] | None = None) -> int:
    return _min_insync_replicas(self, record, replicas) if replicas is not None else len(record.replicas) + 1


def _same_leader_epoch(self: Elections, record: PartitionRecord, **change: Any) -> PartitionRecord:
    return dataclasses.replace(_changed(self, record, **change), leader_epoch=record.leader_epoch)


_holds: Final = Leader._holds
_on_answer: Final = Leader.on_answer
_leader_probed: Final = Leader.probed
_refused: Final = Leader.refused
_heard: Final = Broker._heard
_check_read: Final = Leader.check_read
_answer: Final = Follower.answer
_check: Final = Follower.check
_truncation: Final = Follower.truncation
_truncated: Final = Follower.truncated
_follower_probed: Final = Follower.probed
_alter_isr: Final = Elections.alter_isr
_min_insync_replicas: Final = Elections.min_insync_replicas
_changed: Final = Elections._changed
LIVES: Final = ("wipe_and_restart",)
DELETIONS: Final = ("delete_records", "kill_and_restart", "cut_pair", "mend", "cut_from_controller")
_NOT_TOO_FEW: Final = (Leader, "_too_few", property(lambda leader: False))

BUGS: Final[Mapping[str, Bug]] = {
    "acks=all is answered before the isr has it": Bug(Shell(acknowledges_what_is_flushed=True)),
    "a wiped disk may lead": Bug(Shell(registers_lost_disks_as_clean=True), at=4),
    "the high watermark counts the committed isr only": replaced(
        Leader, "maximal_isr", property(lambda leader: frozenset(leader.state.isr)), at=7
    ),
    "a refused isr is forgotten": replaced(Leader, "refused", _refused_and_forgotten, at=13),
    "the high watermark counts what the leader has not flushed": replaced(Leader, "_holds", _own_log_counted_at_once),
    "the high watermark counts what a follower has not flushed": replaced(Follower, "answer", _flushed_means_written),
    "the high watermark moves while the isr is too small": replaced(*_NOT_TOO_FEW),
    "a follower joins below the epoch's start": replaced(Leader, "_may_join", _join_below_the_epochs_start, at=7),
    "a follower joins below the high watermark": replaced(Leader, "_may_join", _join_below_the_high_watermark),
    "an answer to an earlier leader counts": replaced(
        Leader,
        "on_answer",
        _answers_of_any_epoch,
        (Leader, "probed", _probe_answers_of_any_epoch),
        focus=("prefer", "lose_actor", "pause", "resume"),
        at=59,
    ),
    "an answer of an earlier life counts": replaced(Progress, "live", _any_life_answers, focus=LIVES, at=111),
    "what a follower held in an earlier life counts": replaced(
        Leader, "probed", _what_an_earlier_life_held_counts, at=134
    ),
    "logs are compared by their lengths": replaced(leader_module, "truncation_point", _lengths_compared),
    "logs without a common epoch share nothing": replaced(
        leader_module, "truncation_point", _nothing_shared_means_nothing_kept, focus=DELETIONS, at=91
    ),
    "a new leader serves reads at once": replaced(Leader, "serves_reads", property(lambda leader: not leader.deposed)),
    "the lease counts from the answer": replaced(Broker, "_heard", _lease_from_the_answer),
    "reads are served without a lease": replaced(Leader, "check_read", _reads_without_a_lease),
    "a follower takes batches of any leader epoch": replaced(Follower, "check", _any_epoch_checked, at=28),
    "a truncation cuts a log that was not looked at": replaced(Follower, "truncation", _cut_by_any_round, at=44),
    "a follower cuts its log at its high watermark": replaced(
        Follower,
        "truncation",
        _cut_to_the_high_watermark,
        (Follower, "truncated", _cut_to_the_high_watermark_done),
    ),
    "a late truncation cuts again": replaced(Follower, "truncation", _cut_again),
    "a follower is not compared with its leader": replaced(Follower, "probed", _gaps_are_aligned),
    "a follower shows what it has not flushed": replaced(Follower, "_advance", _read_before_it_is_flushed),
    "a follower that is left behind stays so": replaced(
        Follower, "_is_left_behind", lambda follower, request: False, at=324
    ),
    "the partition epoch of an isr change is not checked": replaced(
        Elections, "alter_isr", _any_partition_epoch, at=112
    ),
    "a stale incarnation may join": replaced(Elections, "_may_join", _any_life_joins, focus=LIVES, at=15),
    "any live replica is elected": replaced(Elections, "_eligible", _anybody_is_eligible),
    "the elr outlives its reason": replaced(Elections, "min_insync_replicas", _elr_for_ever, _NOT_TOO_FEW),
    "an election keeps the leader epoch": replaced(Elections, "_changed", _same_leader_epoch),
}
"""By what is wrong."""


if __name__ == "__main__":
    main(run, BUGS, at_most=1500)
