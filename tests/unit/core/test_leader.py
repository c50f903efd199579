"""A leader's rules, each by a case made by hand. How they hold together is `tests/sim`'s."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from raystream.core.leader import Leader
from raystream.core.metadata import PartitionRecord
from raystream.core.replication import (
    Answer,
    EpochStarts,
    IsrChange,
    Probe,
    ProbeAnswer,
    ReplicationSettings,
    Send,
    Truncate,
    truncation_point,
)
from raystream.errors import NotEnoughReplicas, NotLeader

SETTINGS = ReplicationSettings(
    max_lag_ms=1_000,
    max_in_flight_batches=2,
    max_in_flight_catch_ups=1,
    max_send_bytes=100,
    max_in_flight_bytes=150,
)
STATE = PartitionRecord("t", 0, (1, 2, 3), (1, 2, 3), 1, 5, 0, partition_epoch=10)
EPOCHS: EpochStarts = ((2, 0), (4, 6))


class World:
    """Broker 1 leads in epoch 5 since offset 10, which its log and that of the followers go up to; it knows of 4."""

    def __init__(self, min_insync_replicas: int = 2, log_start_offset: int = 0, **state: Any) -> None:
        self.leader = Leader(
            1,
            9,
            dataclasses.replace(STATE, **state),
            end_offset=10,
            flushed_end_offset=10,
            high_watermark=4,
            epochs=EPOCHS,
            min_insync_replicas=min_insync_replicas,
            settings=SETTINGS,
            now_ms=0,
            log_start_offset=log_start_offset,
        )

    def holds(self, follower: int, flushed_end: int, *, life: int = 1, sent_ms: float = 0.0) -> bool:
        """A follower answers; in its first life, unless said otherwise."""
        known = self.leader.progress(follower)
        assert known is not None
        if known.incarnation != life:
            known.probe()
            self.probed(follower, life=life)
        end = self.leader.end_offset
        return self.leader.on_answer(self.answer(follower, flushed_end, life=life, sent_ms=sent_ms, leader_end=end))

    def probed(
        self, follower: int, end: int = 10, epochs: EpochStarts = EPOCHS, *, life: int = 1, epoch: int = 5
    ) -> None:
        known = self.leader.progress(follower)
        assert known is not None
        self.leader.probed(
            ProbeAnswer(
                follower=follower,
                incarnation=life,
                leader_epoch=epoch,
                round=known.round,
                end_offset=end,
                epochs=epochs,
            )
        )

    def answer(
        self,
        follower: int,
        end: int,
        *,
        life: int = 1,
        sent_ms: float = 0.0,
        leader_end: int = 10,
        epoch: int = 5,
        gap: bool = False,
    ) -> Answer:
        known = self.leader.progress(follower)
        return Answer(
            follower=follower,
            incarnation=life,
            leader_epoch=epoch,
            round=0 if known is None else known.round,
            sent_ms=sent_ms,
            leader_end_offset=leader_end,
            end_offset=end,
            flushed_end_offset=end,
            gap=gap,
        )

    def append(self, end: int) -> None:
        self.leader.appended(end)
        self.leader.flushed(end)

    def committed(self, partition_epoch: int, **state: Any) -> bool:
        return self.leader.committed(dataclasses.replace(self.leader.state, partition_epoch=partition_epoch, **state))

    def proposal(self, now_ms: float) -> IsrChange:
        change = self.leader.proposal(now_ms)
        assert change is not None
        return change

    def streaming(self, follower: int, end: int = 10) -> None:
        """Through probe and truncation."""
        assert isinstance(self.leader.next_request(follower, 0), Probe)
        self.probed(follower, end)
        assert isinstance(self.leader.next_request(follower, 0), Truncate)
        self.leader.on_answer(self.answer(follower, end))

    def send(self, follower: int, now_ms: float, size: int = 100) -> Send:
        request = self.leader.next_request(follower, now_ms)
        assert isinstance(request, Send)
        end = request.offset + (request.max_bytes > 0)
        self.leader.sent(follower, request, end, size if request.max_bytes else 0)
        return request


# The high watermark -------------------------------------------------------------------------------------------------


def test_the_high_watermark_is_what_all_of_the_isr_has_on_its_disks() -> None:
    world = World()
    assert not world.holds(2, 10) and world.leader.high_watermark == 4
    assert world.holds(3, 8) and world.leader.high_watermark == 8
    assert not world.holds(3, 7) and world.leader.high_watermark == 8


def test_the_leaders_own_log_counts_when_it_is_flushed() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 12)
    world.leader.appended(12)
    assert world.leader.high_watermark == 10
    assert world.leader.flushed(12) and world.leader.high_watermark == 12


def test_the_high_watermark_stands_while_the_isr_is_too_small() -> None:
    world = World(isr=(1,))
    world.append(12)
    assert world.leader.high_watermark == 4
    assert world.leader.set_min_insync_replicas(1) and world.leader.high_watermark == 12


def test_the_high_watermark_stands_while_the_controller_keeps_eligible_replicas() -> None:
    world = World(isr=(1,), elr=(2,), min_insync_replicas=1)
    world.append(12)
    assert world.leader.high_watermark == 4
    with pytest.raises(NotEnoughReplicas):
        world.leader.check_append()
    assert world.committed(11, elr=()) and world.leader.high_watermark == 12


def test_whoever_may_be_in_the_isr_by_now_counts() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 10)
    world.holds(3, 10)
    change = world.proposal(0)
    assert change.isr == ((1, 9), (2, 1), (3, 1))
    world.append(12)
    assert not world.holds(2, 12) and world.leader.high_watermark == 10
    world.leader.refused(change, 1)
    assert world.leader.maximal_isr == {1, 2, 3}  # a copy of it may still be taken
    assert world.committed(11) and world.leader.high_watermark == 12


def test_reads_wait_until_the_high_watermark_has_reached_the_epochs_start() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 9)
    assert not world.leader.serves_reads
    world.holds(2, 10)
    assert world.leader.serves_reads


def test_appends_with_acks_all_are_refused_where_the_isr_is_too_small_or_the_lead_is_over() -> None:
    world = World(isr=(1,))
    with pytest.raises(NotEnoughReplicas):
        world.leader.check_append()
    world.committed(11, leader_epoch=6, leader=2)
    with pytest.raises(NotLeader):
        world.leader.check_append()
    assert world.leader.deposed and not world.leader.serves_reads
    assert world.leader.next_request(2, 0) is None and world.leader.proposal(9_999) is None
    assert not world.holds(2, 10)


def test_reads_are_served_once_the_epoch_is_committed_and_while_the_lease_lasts() -> None:
    world = World(isr=(1,), min_insync_replicas=1)
    with pytest.raises(NotLeader, match="what is committed"):
        world.leader.check_read(0, math.inf)
    world.leader.flushed(10)
    world.leader.check_read(99, 100)
    with pytest.raises(NotLeader, match="for too long"):
        world.leader.check_read(100, 100)
    world.committed(11, leader_epoch=6, leader=2)
    with pytest.raises(NotLeader):
        world.leader.check_read(0, math.inf)


def test_who_holds_the_partition_alone_needs_no_lease() -> None:
    World(replicas=(1,), isr=(1,)).leader.check_read(0, -math.inf)


# What counts --------------------------------------------------------------------------------------------------------


def test_answers_of_other_epochs_and_strangers_do_not_count() -> None:
    world = World(isr=(1, 2))
    world.probed(2, epoch=4)
    assert isinstance(world.leader.next_request(2, 0), Probe)
    world.probed(2)
    assert not world.leader.on_answer(world.answer(2, 10, epoch=4))
    assert not world.leader.on_answer(world.answer(7, 10))
    assert world.leader.high_watermark == 4


def test_a_new_life_of_a_follower_begins_with_nothing() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 10)
    world.append(12)
    world.holds(2, 11, life=2)
    assert world.leader.high_watermark == 11
    assert not world.holds(2, 12, life=3) or world.leader.high_watermark == 12
    known = world.leader.progress(2)
    assert known is not None and known.incarnation == 3
    assert not world.leader.on_answer(world.answer(2, 99, life=2))


# The ISR ------------------------------------------------------------------------------------------------------------


def test_a_follower_that_lags_leaves() -> None:
    world = World()
    world.holds(2, 10, sent_ms=600)
    assert world.leader.proposal(1_000) is None
    assert world.proposal(1_001).isr == ((1, 9), (2, 1))


def test_a_follower_stays_that_has_what_there_was_when_it_was_asked() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 10)
    world.append(99)
    world.leader.on_answer(world.answer(2, 10, sent_ms=900, leader_end=10))
    assert world.leader.proposal(1_500) is None


def test_a_follower_joins_at_the_high_watermark_and_the_epochs_start_and_not_below() -> None:
    world = World(isr=(1, 2))
    world.holds(3, 9)  # past the high watermark, 4
    assert world.leader.proposal(0) is None
    world.holds(3, 10)
    assert world.proposal(0).isr == ((1, 9), (2, -1), (3, 1))


def test_one_change_is_under_way_and_said_again_until_its_outcome_is_known() -> None:
    world = World(isr=(1, 2))
    world.holds(3, 10)
    change = world.proposal(0)
    world.holds(2, 10)
    assert world.leader.proposal(SETTINGS.retry_ms - 1) is None
    assert world.proposal(SETTINGS.retry_ms) == change
    world.committed(11, isr=(1, 2, 3))
    assert world.leader.proposal(SETTINGS.retry_ms * 2) is None


def test_after_a_refusal_the_isr_is_settled_and_the_follower_left_alone_for_a_while() -> None:
    world = World(isr=(1, 2))
    world.holds(2, 10)
    world.holds(3, 10)
    world.leader.refused(world.proposal(0), 10)
    assert world.leader.proposal(10) is None
    assert world.proposal(600).isr == ((1, 9), (2, 1))
    world.committed(11)
    for follower in (2, 3):
        world.leader.on_answer(world.answer(follower, 10, sent_ms=2_000))
    assert world.leader.proposal(2_009) is None
    assert world.proposal(2_010).isr == ((1, 9), (2, 1), (3, 1))


def test_older_news_and_other_epochs_change_nothing() -> None:
    world = World()
    world.committed(10, isr=(1,))
    world.committed(12, isr=(1,), leader_epoch=4)
    assert world.leader.state.isr == (1, 2, 3) and not world.leader.deposed


def test_replicas_come_and_go() -> None:
    world = World()
    world.committed(11, replicas=(1, 2, 4), isr=(1, 2))
    assert world.leader.followers == (2, 4) and isinstance(world.leader.next_request(4, 0), Probe)


# Pipelines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leader", "leader_end", "follower", "follower_end", "point"),
    [
        (((1, 0),), 10, ((1, 0),), 7, 7),  # behind
        (((1, 0), (3, 5)), 9, ((1, 0),), 8, 5),  # the leader's epoch 1 ended earlier
        (((1, 0), (3, 8)), 9, ((1, 0), (2, 5)), 9, 5),  # the follower's did
        (((1, 0), (4, 6)), 9, ((1, 0), (2, 3), (3, 5)), 9, 3),
        (((3, 0),), 9, ((1, 0), (2, 5)), 9, 0),  # nothing in common
        (((2, 0),), 9, ((3, 4),), 6, 4),  # what the follower has deleted was committed
        (((1, 0),), 10, (), 6, 6),  # nothing there that could part
        ((), 5, (), 6, 5),
    ],
)
def test_where_logs_part(
    leader: EpochStarts, leader_end: int, follower: EpochStarts, follower_end: int, point: int
) -> None:
    assert truncation_point(leader, leader_end, follower, follower_end) == point


def test_a_follower_is_probed_cut_where_the_logs_part_and_streamed_to_from_there() -> None:
    world = World()
    probe = world.leader.next_request(2, 0)
    assert isinstance(probe, Probe) and world.leader.next_request(2, 1) is None
    world.probed(2, 9, ((2, 0), (3, 5)))
    cut = world.leader.next_request(2, 2)
    assert isinstance(cut, Truncate) and (cut.offset, cut.anew, cut.incarnation) == (5, False, 1)
    world.leader.on_answer(world.answer(2, 5))
    send = world.leader.next_request(2, 3)
    assert isinstance(send, Send) and (send.offset, send.high_watermark, send.catch_up) == (5, 4, True)


def test_a_follower_behind_the_logs_start_begins_anew_there() -> None:
    world = World(log_start_offset=7)
    world.probed(2, 5, ((2, 0),))
    cut = world.leader.next_request(2, 0)
    assert isinstance(cut, Truncate) and (cut.offset, cut.anew) == (7, True)


def test_what_is_not_answered_is_asked_again() -> None:
    world = World()
    world.leader.next_request(2, 0)
    assert world.leader.next_request(2, SETTINGS.retry_ms - 1) is None
    assert isinstance(world.leader.next_request(2, SETTINGS.retry_ms), Probe)
    world.probed(2)
    world.leader.next_request(2, 600)
    assert isinstance(world.leader.next_request(2, 600 + SETTINGS.retry_ms), Truncate)


def test_batches_follow_each_other_up_to_a_bound() -> None:
    world = World()
    world.streaming(2)
    world.append(20)
    assert (world.send(2, 1).max_bytes, world.send(2, 1).max_bytes) == (100, 50)
    assert world.leader.next_request(2, 1) is None
    world.leader.on_answer(world.answer(2, 11))
    assert world.send(2, 2).offset == 12


def test_a_follower_far_behind_is_sent_less_at_a_time() -> None:
    world = World()
    world.streaming(2)
    world.leader.appended(20, held_from=12)
    assert world.send(2, 1, size=10).catch_up
    assert world.leader.next_request(2, 1) is None
    world.leader.on_answer(world.answer(2, 11))
    sends = [world.send(2, 1, size=10) for _ in range(2)]
    assert [(send.offset, send.catch_up) for send in sends] == [(11, True), (12, False)]


def test_an_idle_follower_is_told_the_high_watermark_at_once_and_called_now_and_then() -> None:
    world = World(isr=(1, 2))
    world.streaming(2)
    assert world.send(2, 1).high_watermark == 10
    assert world.leader.next_request(2, SETTINGS.heartbeat_interval_ms) is None
    assert world.send(2, 1 + SETTINGS.heartbeat_interval_ms).max_bytes == 0


def test_a_gap_and_batches_without_an_answer_lead_back_to_a_probe() -> None:
    world = World()
    world.streaming(2)
    world.append(20)
    world.send(2, 1)
    world.leader.on_answer(world.answer(2, 10, gap=True))
    assert isinstance(world.leader.next_request(2, 2), Probe)
    world.probed(2)
    world.leader.next_request(2, 2)
    world.leader.on_answer(world.answer(2, 10))
    world.send(2, 3)
    assert isinstance(world.leader.next_request(2, 3 + SETTINGS.request_timeout_ms), Probe)


def test_a_follower_that_refuses_is_not_asked_without_a_pause() -> None:
    world = World()
    world.streaming(2)
    world.append(20)
    request = world.send(2, 1)
    world.leader.failed(2, request.round)
    assert world.leader.next_request(2, 2) is None
    assert isinstance(world.leader.next_request(2, SETTINGS.retry_ms), Probe)


def test_answers_of_an_earlier_round_do_not_move_the_pipeline() -> None:
    world = World()
    world.streaming(2)
    late = world.answer(2, 10)
    world.leader.failed(2, late.round)
    known = world.leader.progress(2)
    assert known is not None
    world.leader.on_answer(late)
    world.leader.failed(2, late.round)
    assert (known.mode, known.round) == ("probe", late.round + 1)
