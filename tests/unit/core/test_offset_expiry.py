"""Positions of groups without members: kept for a week, and never dropped while somebody reads."""

from __future__ import annotations

from raystream import messages as m
from raystream.core.groups import Groups
from raystream.core.offset_expiry import OFFSETS_RETENTION_MS
from tests.unit.core.test_membership import House

WEEK = OFFSETS_RETENTION_MS
NOW = 1_800_000_000_000


def commit(house: House, member: str = "", epoch: int = -1, offset: int = 5) -> None:
    position = m.CommittedOffset("t", 0, offset)
    house.done(
        house.groups.commit(m.CommitRequest(group="g", member_id=member, member_epoch=epoch, offsets=(position,)))
    )


def look(house: House, wall_ms: int) -> int:
    """How many records it took."""
    decision = house.groups.expire_offsets(wall_ms)
    house.done(decision)
    return len(decision.records)


def test_a_group_that_is_empty_for_a_week_is_forgotten() -> None:
    house = House(t=1)
    commit(house)
    assert look(house, NOW) == 1, "it is noted"
    assert look(house, NOW + WEEK - 1) == 0
    house.restart()
    assert look(house, NOW + WEEK) == 2, "the note outlives coordinators"
    assert house.groups.fetch_offsets("g") == () and house.groups.list(0) == ()


def test_a_group_with_members_keeps_its_positions() -> None:
    house = House(t=1)
    house.beat("a", 0)
    commit(house, "a", 1)
    assert look(house, NOW) == look(house, NOW + 10 * WEEK) == 0
    house.beat("a", -1)
    assert look(house, NOW + 10 * WEEK) == 1, "only now it is empty"
    assert look(house, NOW + 11 * WEEK - 1) == 0


def test_a_member_that_joins_begins_the_time_anew() -> None:
    house = House(t=1)
    commit(house)
    look(house, NOW)
    house.beat("a", 0)
    house.beat("a", -1)
    assert look(house, NOW + WEEK) == 1 and house.groups.fetch_offsets("g") != ()
    commit(house, offset=6)
    assert look(house, NOW + 2 * WEEK) == 1 and house.groups.fetch_offsets("g") != (), "an administrator's commit too"


def test_a_clock_that_is_set_back_forgets_nothing_early() -> None:
    house = House(t=1)
    commit(house)
    look(house, NOW + 5 * WEEK)
    assert look(house, NOW) == 1 and look(house, NOW + WEEK - 1) == 0
    assert look(house, NOW + WEEK) == 2


def test_replay_and_snapshot_agree_on_the_note() -> None:
    house = House(t=1)
    commit(house)
    look(house, NOW)
    again = Groups()
    for record in house.groups.snapshot():
        again.replay(record, 0)
    assert len(again.expire_offsets(NOW + WEEK).records) == 2
