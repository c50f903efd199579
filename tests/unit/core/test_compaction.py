"""The log of a state stays short, and replays to the state at every moment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from raystream import messages as m
from raystream.core.compaction import BOUND_SNAPSHOTS, PIECE_BYTES, RETRY_MS, Compaction
from raystream.core.coordinator import Coordinator
from raystream.core.records import Decision, Pair
from raystream.errors import RaystreamError

GROUPS = ("a", "b", "c", "d", "e")
MEMBERS = ("m1", "m2")
SESSION_MS = 10_000


def state_of(coordinator: Coordinator) -> Any:
    """All that replay gives. The group of no name is how a snapshot says the epoch below which no new group begins."""
    groups = {
        name: (group.epoch, group.members, group.offsets, group.holder)
        for name, group in coordinator.groups._groups.items()
        if name
    }
    return groups, coordinator.groups._epoch_floor, coordinator._producer_ids._reserved


def replayed(rows: Sequence[Pair]) -> Coordinator:
    state = Coordinator()
    for key, value in rows:
        state.replay_row(key, value, 0)
    return state


class House:
    """A coordinator with its log as a list; `start` is the log start offset."""

    def __init__(self, bound_rows: int = 100, piece_rows: int = 3) -> None:
        self.compaction = Compaction(bound_rows, piece_rows)
        self.state = Coordinator()
        self.rows: list[Pair] = []
        self.start = 0
        self.now_ms = 0.0
        self.topics = {"t": 4, "u": 2}

    def append(self, rows: list[Pair]) -> int:
        base_offset = self.start + len(self.rows)
        self.rows += rows
        self.compaction.appended(len(rows))
        return base_offset

    def done(self, decision: Decision) -> Any:
        for record in decision.records:
            self.state.replay(record, self.now_ms)
        if decision.records:
            self.append(self.state.encode(decision.records))
        return decision.reply

    def commit(self, group: str, offset: int, partition: int = 0) -> None:
        position = m.CommittedOffset("t", partition, offset)
        self.done(self.state.commit(m.CommitRequest(group=group, offsets=(position,))))

    def piece(self) -> int:
        """Writes the next piece; its rows."""
        rows = self.compaction.piece(self.state.snapshot, self.now_ms)
        if rows:
            self.compaction.written(self.append(rows), len(rows))
        return len(rows)

    def delete(self) -> None:
        before = self.compaction.to_delete(self.now_ms)
        if before is not None:
            del self.rows[: before - self.start]
            self.start = before
            self.compaction.deleted(before)

    def restart(self) -> None:
        self.state = replayed(self.rows)
        self.compaction.loaded(len(self.rows), sum(1 for _ in self.state.snapshot()))

    def anything(self, rng: random.Random) -> None:
        """Some request, as a client or a person may send it."""
        group, member = rng.choice(GROUPS), rng.choice(MEMBERS)
        known = self.state.groups._groups.get(group)
        there = known.members.get(member) if known is not None else None
        epoch = there.epoch if there is not None else 0
        position = m.CommittedOffset(rng.choice(("t", "u")), rng.randrange(2), rng.randrange(1000))
        beat = m.HeartbeatRequest(
            group=group,
            member_id=member,
            member_epoch=rng.choice((epoch, epoch, epoch, -1)),
            topics=rng.choice((("t",), ("u",), ("t", "u"))),
            owned=tuple(held[:2] for held in there.assigned) if there is not None else (),
            session_timeout_ms=SESSION_MS,
        )
        ask: tuple[Callable[[], Decision], ...] = (
            lambda: self.state.heartbeat(beat, self.topics, self.now_ms),
            lambda: self.state.heartbeat(beat, self.topics, self.now_ms),
            lambda: self.state.commit(m.CommitRequest(group=group, offsets=(position,))),
            lambda: self.state.commit(
                m.CommitRequest(group=group, member_id=member, member_epoch=epoch, offsets=(position,))
            ),
            lambda: self.state.delete_group(m.GroupRequest(group=group)),
            lambda: self.state.init_producer(m.InitProducerRequest()),
            lambda: self.state.expire(self.now_ms),
            lambda: self.state.know_topics({name: rng.choice("xxxxy") for name in self.topics}),
        )
        try:
            self.done(rng.choice(ask)())
        except RaystreamError:
            return
        self.now_ms += rng.choice((10, 10, 10, SESSION_MS / 2))


@pytest.mark.parametrize("seed", range(10))
def test_the_log_gives_the_state_whatever_happens_between_the_pieces(seed: int) -> None:
    rng = random.Random(seed)
    house = House()
    snapshots = 0
    for _ in range(2_000):
        house.anything(rng)
        if rng.random() < 0.5:
            house.piece()
        if rng.random() < 0.2:
            snapshots += house.compaction.deleting
            house.delete()
        if rng.random() < 0.01:
            house.restart()
        if rng.random() < 0.1:
            assert state_of(replayed(house.rows)) == state_of(house.state)
    assert snapshots > 3
    assert len(house.rows) < 1_500


def test_pieces_of_a_snapshot_after_all_that_came_before_change_nothing() -> None:
    rng = random.Random(1)
    house = House(bound_rows=10_000)
    for _ in range(500):
        house.anything(rng)
    expected = state_of(house.state)
    pieces = house.state.encode(list(house.state.snapshot()))
    for count in range(len(pieces) + 1):
        assert state_of(replayed([*house.rows, *pieces[:count]])) == expected
    assert state_of(replayed(pieces)) == expected


def test_a_group_that_went_leaves_the_epoch_that_a_later_one_begins_with() -> None:
    house = House()
    beat = m.HeartbeatRequest(group="a", member_id="m", member_epoch=0, topics=("t",))
    reply = house.done(house.state.heartbeat(beat, house.topics, 0))
    beat = m.HeartbeatRequest(group="a", member_id="m", member_epoch=-1)
    house.done(house.state.heartbeat(beat, house.topics, 0))
    assert house.state.list_groups(0).reply == ()
    house.state = replayed(house.state.encode(list(house.state.snapshot())))
    assert house.state.list_groups(0).reply == ()
    beat = m.HeartbeatRequest(group="a", member_id="m", member_epoch=0, topics=("t",))
    assert house.done(house.state.heartbeat(beat, house.topics, 0)).member_epoch > reply.member_epoch


def test_a_snapshot_is_due_past_the_bound() -> None:
    house = House(bound_rows=10)
    for offset in range(10):
        house.commit("a", offset)
        assert house.piece() == 0
    house.commit("a", 10)
    assert house.piece() == 2, "the group and its position"
    assert not house.compaction.deleting, "there may be more to come"
    assert house.piece() == 0
    house.delete()
    assert house.start == 11
    for offset in range(10):
        house.commit("a", 100 + offset)
        assert house.piece() == 0
    house.commit("a", 200)
    assert house.piece() == 2


def test_a_large_state_may_have_a_longer_log() -> None:
    house = House(bound_rows=10, piece_rows=1_000)
    for partition in range(100):
        house.commit("a", 1, partition)
    house.restart()
    assert house.piece() == 0, "a start with nothing superfluous in its log writes nothing"
    written = 0
    while not house.piece():
        house.commit("a", 2 + written, 0)
        written += 1
    assert written == 101 * BOUND_SNAPSHOTS + 2  # the group's record is in the snapshot and not in the log


def test_what_a_start_replayed_counts() -> None:
    house = House(bound_rows=10)
    for offset in range(20):
        house.commit("a", offset)
    house.restart()
    assert house.piece() == 2


def test_a_piece_that_failed_begins_the_snapshot_anew_after_a_rest() -> None:
    house = House(bound_rows=10, piece_rows=1)
    for offset in range(20):
        house.commit("a", offset)
    assert house.piece() == 1
    house.compaction.piece(house.state.snapshot, house.now_ms)
    house.compaction.failed(house.now_ms)
    house.restart()
    assert house.piece() == 0
    assert not house.compaction.under_way
    house.now_ms += RETRY_MS
    assert [house.piece() for _ in range(3)] == [1, 1, 0]
    house.delete()
    assert house.start == 21, "the first piece of the first attempt is not part of the second"
    assert len(house.rows) == 2


def test_a_deletion_is_asked_for_again_until_it_is_done() -> None:
    house = House(bound_rows=10)
    for offset in range(20):
        house.commit("a", offset)
    house.piece()
    house.piece()
    asked = [house.compaction.to_delete(now_ms) for now_ms in (0, RETRY_MS - 1, RETRY_MS, 2 * RETRY_MS)]
    assert asked == [20, None, 20, 20]
    house.compaction.deleted(20)
    assert house.compaction.to_delete(9 * RETRY_MS) is None
    assert not house.compaction.deleting


def test_pieces_are_small_in_bytes_too() -> None:
    house = House(bound_rows=10, piece_rows=1_000)
    for partition in range(100):
        position = m.CommittedOffset("t", partition, 1, "ä" * 4_000)
        house.done(house.state.commit(m.CommitRequest(group="a", offsets=(position,))))
    for offset in range(300):
        house.commit("b", offset)
    sizes = []
    while rows := house.compaction.piece(house.state.snapshot, 0):
        sizes.append(sum(len(key or b"") + len(value or b"") for key, value in rows))
    assert len(sizes) > 3
    assert max(sizes) < PIECE_BYTES + 30_000
