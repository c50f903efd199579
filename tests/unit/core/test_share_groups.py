"""Share groups, decision by decision: who gets which records, what becomes of them, and what survives a coordinator."""

from __future__ import annotations

from typing import Any

import pytest

from raystream import messages as m
from raystream.core.records import Record, Removed, from_pair
from raystream.core.share_records import ACCEPTED, AVAILABLE, REJECTED, SPENT
from raystream.errors import GroupNotEmpty, GroupNotFound, InvalidArgument, Overloaded, UnknownMember
from tests.unit.core.share_house import House, Ranges


@pytest.fixture
def house() -> House:
    house = House()
    house.join("a", "b")
    house.grow(10)
    return house


def test_records_are_one_members_until_it_has_said_what_becomes_of_them(house: House) -> None:
    assert house.acquire("a", 4) == [(0, 4, 1)]
    assert house.acquire("b", 4) == [(4, 8, 1)]
    assert house.acquire("a", 4) == [(8, 10, 1)]
    assert house.acquire("b", 4) == []
    assert house.watch == (("t", 0, 10),)
    assert house.say("a", m.ACCEPT, 0, 4) == []
    assert (house.record.start_offset, house.record.accepted) == (4, 4)


def test_what_is_settled_in_the_middle_waits_for_what_is_before_it(house: House) -> None:
    house.acquire("a")
    house.say("a", m.ACCEPT, 3, 5)
    assert (house.record.start_offset, house.record.runs) == (0, ((0, 3, AVAILABLE, 0), (3, 5, ACCEPTED, 0)))
    house.say("a", m.ACCEPT, 0, 3)
    assert (house.record.start_offset, house.record.runs) == (5, ())


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (m.ACCEPT, []),
        (m.GAP, []),
        (m.REJECT, []),
        (m.GONE, []),
        (m.RELEASE, [(0, 2, 2)]),
        (m.RETURN, [(0, 2, 1)]),
        (m.RENEW, []),
    ],
)
def test_what_comes_again_after_what_was_said(house: House, kind: str, again: Ranges) -> None:
    house.acquire("a")
    assert house.say("a", kind, 0, 2) == []
    assert house.acquire("b") == again


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (m.ACCEPT, (2, 0, 0, 0)),
        (m.GAP, (0, 0, 0, 0)),
        (m.REJECT, (0, 2, 0, 0)),
        (m.GONE, (0, 0, 0, 2)),
    ],
)
def test_what_is_counted(house: House, kind: str, counts: tuple[int, ...]) -> None:
    house.acquire("a")
    house.say("a", kind, 0, 2)
    record = house.record
    assert (record.accepted, record.archived, record.dead_lettered, record.lost) == counts
    assert record.start_offset == 2


def test_only_who_has_a_record_says_what_becomes_of_it(house: House) -> None:
    house.acquire("a", 5)
    assert house.say("b", m.ACCEPT, 0, 5) == [(0, 5)]
    assert house.say("a", m.ACCEPT, 3, 8) == [(5, 8)], "the rest of a range counts"
    assert house.say("a", m.ACCEPT, 0, 5) == [(3, 5)], "what is settled is"
    assert house.say("a", m.RELEASE, 0, 2) == [(0, 2)], "also where it is below the start offset"
    assert house.record.accepted == 5


def test_a_lock_runs_out_and_the_late_word_is_refused(house: House) -> None:
    house.acquire("a", 5)
    house.pass_ms(999)
    assert house.acquire("b", 5) == [(5, 10, 1)]
    house.pass_ms(1)
    assert house.acquire("b", 5) == [(0, 5, 2)]
    assert house.say("a", m.ACCEPT, 0, 5) == [(0, 5)]
    assert house.say("b", m.ACCEPT, 0, 5) == []


def test_a_late_word_does_not_count_for_what_the_member_has_acquired_anew(house: House) -> None:
    house.acquire("a", 5, sequence=50)
    house.pass_ms(1_000)
    assert house.acquire("a", 5, sequence=51) == [(0, 5, 2)]
    assert house.say("a", m.ACCEPT, 0, 5, acquisition=50) == [(0, 5)]
    assert house.say("a", m.RENEW, 0, 5, acquisition=50) == [(0, 5)]
    assert house.say("a", m.ACCEPT, 0, 5, acquisition=51) == []


def test_a_lock_that_is_renewed_runs_out_later(house: House) -> None:
    house.acquire("a", 5)
    house.pass_ms(900)
    house.say("a", m.RENEW, 0, 2)
    house.pass_ms(500)
    assert house.acquire("b", 5) == [(2, 5, 2), (5, 7, 1)]
    house.pass_ms(500)
    assert house.acquire("b", 2) == [(0, 2, 2)]


def test_the_records_of_a_member_that_dies_are_to_be_had_at_once() -> None:
    house = House(lock_timeout_ms=60_000)
    house.join("a", "b")
    house.grow(3)
    house.acquire("a")
    house.pass_ms(9_000)
    house.beat("b")
    house.pass_ms(1_000)
    assert house.acquire("b") == [(0, 3, 2)]
    with pytest.raises(UnknownMember, match="join again"):
        house.acquire("a")
    house.beat("b", m.LEAVE)
    house.join("c")
    assert house.acquire("c") == [(0, 3, 3)]


def test_two_members_that_die_at_once_leave_both_their_records() -> None:
    house = House(max_deliveries=2)
    house.join("a", "b")
    house.grow(6)
    house.acquire("a", 3)
    house.acquire("b", 3)
    house.pass_ms(60_000)
    house.join("c")
    assert house.acquire("c") == [(0, 6, 2)]
    house.pass_ms(1_000)
    assert house.record.archived == 6


def test_a_record_is_delivered_so_often_and_archived_then() -> None:
    house = House(max_deliveries=2)
    house.join("a")
    house.grow(1)
    for deliveries in (1, 2):
        assert house.acquire("a") == [(0, 1, deliveries)]
        house.say("a", m.RELEASE, 0, 1)
    assert house.acquire("a") == []
    assert (house.record.archived, house.record.start_offset) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "state", "reason"), [(m.RELEASE, SPENT, "deliveries"), (m.REJECT, REJECTED, "rejected")]
)
def test_a_dead_letter_is_archived_only_when_it_is_buried(kind: str, state: int, reason: str) -> None:
    house = House(max_deliveries=1, dead_letter="dead")
    house.join("a", "b")
    house.grow(2)
    house.acquire("a")
    house.say("a", kind, 0, 1)
    assert house.record.runs == ((0, 1, state, 1),)
    house.restart()
    house.join("a", "b")
    house.grow(2)
    assert house.acquire("b", 1) == [(0, 1, 1)]
    assert house.reasons == [reason]
    assert house.acquire("a") == [(1, 2, 1)], "nobody else buries it meanwhile"
    assert house.say("b", m.ACCEPT, 0, 1) == [(0, 1)], "it cannot be accepted any more"
    house.pass_ms(1_000)
    house.acquire("a")
    assert house.reasons[0] == reason, "who was to bury it did not come back"
    assert house.say("a", m.BURIED, 0, 1) == []
    assert (house.record.dead_lettered, house.record.start_offset) == (1, 1)


def test_a_living_record_cannot_be_buried(house: House) -> None:
    house.acquire("a", 1)
    assert house.say("a", m.BURIED, 0, 1) == [(0, 1)]
    assert house.record.dead_lettered == 0


def test_dead_letters_are_archived_where_there_is_no_topic_for_them_any_more() -> None:
    house = House(dead_letter="dead")
    house.join("a")
    house.grow(1)
    house.acquire("a")
    house.say("a", m.REJECT, 0, 1)
    house.settings["dead_letter"] = ""
    house.join("b")
    assert (house.record.archived, house.record.start_offset) == (1, 1)


def test_a_repeated_acquisition_gives_the_same(house: House) -> None:
    assert house.acquire("a", 3, sequence=50) == [(0, 3, 1)]
    assert house.acquire("a", 3, sequence=50) == [(0, 3, 1)]
    house.say("a", m.ACCEPT, 0, 1)
    assert house.acquire("a", 3, sequence=50) == [(1, 3, 1)], "of what is still its own"


def test_what_a_member_never_heard_of_goes_back_uncounted(house: House) -> None:
    house.acquire("a", 3, sequence=50)
    assert house.acquire("a", 4, sequence=51, received=49) == [(0, 4, 1)]
    assert house.acquire("a", 1, sequence=50) == [], "and what comes late gives nothing"
    assert house.acquire("a", 1, sequence=52, received=51) == [(4, 5, 1)]


def test_a_repeated_word_counts_once_and_a_late_one_never(house: House) -> None:
    house.acquire("a", 2)
    assert house.say("a", m.RELEASE, 0, 1, sequence=90) == []
    assert house.acquire("a", 1) == [(0, 1, 2)]
    assert house.say("a", m.RELEASE, 0, 1, sequence=90) == [], "answered as before"
    assert house.say("a", m.RELEASE, 0, 1, sequence=89) == [(0, 1)]
    assert house.partition.held_by("a") == [(0, 1), (1, 2)]


def test_a_join_that_comes_late_takes_nothing_away(house: House) -> None:
    house.acquire("a", 2)
    house.beat("a", m.JOIN, sequence=1)
    assert house.partition.held_by("a") == [(0, 2)]
    house.join("a")
    assert house.partition.held_by("a") == []


def test_so_much_is_in_flight_and_no_more() -> None:
    house = House(max_in_flight=5)
    house.join("a")
    house.grow(100)
    assert house.acquire("a") == [(0, 5, 1)]
    house.say("a", m.ACCEPT, 1, 5)
    assert house.acquire("a") == []
    assert house.watch == (), "news of the partition would bring nothing"
    house.say("a", m.ACCEPT, 0, 1)
    assert house.acquire("a") == [(5, 10, 1)]


def test_members_take_turns_at_the_partitions() -> None:
    house = House(3)
    house.join("a", "b")
    for partition in range(3):
        house.grow(4, partition)
    assert [house.acquire(member, 4)[0][0] for member in "abab"[:3]] == [0, 1, 2]


def test_only_topics_of_the_member_are_taken_from(house: House) -> None:
    house.topics["u"] = 1
    house.know("t", "u")
    house.join("c", topics=("u",))
    assert house.acquire("c") == []
    assert house.watch == (("u", 0, 0),)


def test_who_waits_is_awakened_by_what_may_bring_something(house: House) -> None:
    def awakened() -> bool:
        return house.state.shares.awakened() == {"w"}

    awakened()
    house.acquire("a")
    assert not awakened()
    house.say("a", m.ACCEPT, 0, 1)
    assert not awakened()
    house.say("a", m.RELEASE, 1, 2)
    assert awakened()
    house.grow(11)
    assert awakened()
    house.grow(11)
    assert not awakened()
    house.pass_ms(1_000)
    assert awakened()


def test_acknowledgements_survive_and_locks_end_with_the_coordinator(house: House) -> None:
    house.acquire("a")
    house.say("a", m.ACCEPT, 0, 2)
    house.say("a", m.RELEASE, 2, 3)
    house.restart()
    with pytest.raises(UnknownMember):
        house.say("a", m.ACCEPT, 3, 4)
    house.join("a")
    house.grow(10)
    assert house.acquire("a") == [(2, 3, 2), (3, 10, 1)]


def test_a_new_group_begins_where_its_first_member_says() -> None:
    house = House(2)
    house.join("a", starts=(("t", 0, 7),))
    house.join("b", starts=(("t", 0, 9), ("t", 1, 9)))
    info = house.state.shares.describe("w", 0)
    assert [(o.partition, o.offset) for o in info.offsets] == [(0, 7), (1, 0)]
    house.topics = {"t": 3}
    house.beat("a")
    assert len(house.state.shares.describe("w", 0).offsets) == 3, "and new partitions at their beginning"


def test_what_retention_takes_is_lost_and_counted(house: House) -> None:
    house.acquire("a", 4)
    house.say("a", m.ACCEPT, 1, 3)
    house.grow(10, start=5)
    assert (house.record.start_offset, house.record.lost, house.record.accepted) == (5, 3, 2)
    assert house.say("a", m.ACCEPT, 3, 4) == [(3, 4)]
    assert house.acquire("b", 1) == [(5, 6, 1)]


def test_a_topic_that_goes_takes_its_state_with_it(house: House) -> None:
    house.acquire("a")
    house.know("other")
    assert house.say("a", m.ACCEPT, 0, 1) == [(0, 1)]
    house.topics = {"t": 1}
    house.done(house.state.know_topics({"t": "another id"}))
    house.beat("a")
    house.grow(10)  # of the topic that had the name before
    assert house.acquire("a") == []


def test_an_empty_group_is_reset_and_deleted(house: House) -> None:
    house.acquire("a")
    house.say("a", m.ACCEPT, 0, 4)
    move = m.CommitRequest(group="w", offsets=(m.CommittedOffset("t", 0, 2),))
    with pytest.raises(GroupNotEmpty, match="2 running members"):
        house.state.commit(move)
    with pytest.raises(GroupNotEmpty, match="2 running members"):
        house.state.delete_group(m.GroupRequest(group="w"))
    house.beat("a", m.LEAVE)
    house.beat("b", m.LEAVE)
    house.done(house.state.commit(move))
    house.join("a")
    assert house.acquire("a", 1) == [(2, 3, 1)]
    house.beat("a", m.LEAVE)
    house.done(house.state.delete_group(m.GroupRequest(group="w")))
    with pytest.raises(GroupNotFound):
        house.state.describe_group(m.GroupRequest(group="w"), 0)
    with pytest.raises(GroupNotFound):
        house.state.shares.delete("w")


def test_a_name_is_of_one_kind_of_group(house: House) -> None:
    with pytest.raises(InvalidArgument, match="share group"):
        house.state.heartbeat(
            m.HeartbeatRequest(group="w", member_id="a", member_epoch=0, topics=("t",)), house.topics, 0
        )
    house.done(
        house.state.heartbeat(
            m.HeartbeatRequest(group="c", member_id="a", member_epoch=0, topics=("t",)), house.topics, 0
        )
    )
    with pytest.raises(InvalidArgument, match="consumer group"):
        house.state.share_heartbeat(
            m.ShareHeartbeatRequest(group="c", member_id="a", intent=m.JOIN, topics=("t",)), house.topics, 0
        )
    assert [info.kind for info in house.state.list_groups(0).reply] == ["consumer", "share"]
    with pytest.raises(InvalidArgument, match="commit nothing"):
        house.state.commit(m.CommitRequest(group="w", member_id="a", offsets=()))


def test_what_an_administrator_sees(house: House) -> None:
    house.acquire("a", 6)
    house.say("a", m.ACCEPT, 1, 2)
    house.say("a", m.RELEASE, 2, 4)
    (share,) = house.state.shares.describe("w", 0).shares
    assert (share.start_offset, share.acquired, share.released, share.settled, share.dying) == (0, 3, 2, 1, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"intent": "sleep"},
        {"topics": ()},
        {"max_deliveries": 0},
        {"lock_timeout_ms": 0},
        {"max_in_flight": 0},
        {"session_timeout_ms": -1},
        {"starts": (("u", 0, 0),)},
        {"starts": (("t", 0, -1),)},
        {"starts": (("t", True, 1),)},
        {"client": "x" * 2_000},
        {"dead_letter": "d" * 300},
    ],
)
def test_a_join_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    house = House()
    with pytest.raises(InvalidArgument):
        house.beat("a", fields.pop("intent", m.JOIN), **fields)
    assert "w" not in house.state.shares


def test_calls_that_make_no_sense_change_nothing(house: House) -> None:
    house.acquire("a", 2)
    for kind, first, stop in (("keep", 0, 1), (m.ACCEPT, 1, 1), (m.ACCEPT, -1, 1)):
        with pytest.raises(InvalidArgument):
            house.say("a", kind, first, stop)
    with pytest.raises(InvalidArgument):
        house.acquire("a", 0)
    request = m.ShareAcknowledgeRequest(group="w", member_id="a", ranges=(("x", 0, 0, 1, m.ACCEPT, 0),), sequence=1_000)
    assert house.done(house.state.shares.acknowledge(request, 0)).refused == (("x", 0, 0, 1),)
    assert house.partition.held_by("a") == [(0, 2)]


def test_a_group_has_so_many_members_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystream.core.share_groups.MAX_SHARE_MEMBERS", 2)
    house.join("a")
    with pytest.raises(Overloaded, match="as many as may be"):
        house.join("c")


def test_one_append_has_one_row_for_each_partition() -> None:
    house = House()
    house.join("a")
    house.grow(10)
    house.acquire("a")
    records: list[Record | Removed] = []
    for offset in range(5):
        request = m.ShareAcknowledgeRequest(
            group="w", member_id="a", ranges=(("t", 0, offset, offset + 1, m.ACCEPT, 0),)
        )
        decision = house.state.shares.acknowledge(request, 0)
        records += decision.records
        for record in decision.records:
            house.state.replay(record, 0)
    assert len(records) == 5
    (row,) = house.state.encode(records)
    assert from_pair(*row) == house.record


def test_who_is_heard_is_told_of_records_that_nobody_takes_to_be_buried() -> None:
    house = House(dead_letter="dead")
    house.join("a", "b")
    house.grow(10)
    assert not house.beat("a").dying
    house.acquire("a", 2)
    house.say("a", m.REJECT, 0, 1)
    assert house.beat("b").dying
    assert house.acquire("a", dying_only=True) == [(0, 1, 1)]
    assert house.reasons == ["rejected"]
    assert not house.beat("b").dying, "somebody has them"
    assert house.acquire("b", dying_only=True) == [], "no record that is to be handled"
    house.say("a", m.BURIED, 0, 1)
    assert house.record.dead_lettered == 1


def test_a_pattern_picks_up_topics_as_they_come() -> None:
    house = House(dead_letter="t.dead")
    house.topics = {"t": 1, "t.dead": 1, "u": 1, "__t": 1}
    house.know()
    house.join("a", topics=(), pattern="(__)?t.*", starts=(("t", 0, 4),))
    partitions = house.state.shares._groups["w"].partitions
    assert {place: found.record.start_offset for place, found in partitions.items()} == {("t", 0): 4}
    house.grow(6)
    assert house.acquire("a") == [(4, 6, 1)]
    house.topics = {**house.topics, "t.new": 2}
    house.know()
    house.beat("a")
    assert sorted(partitions) == [("t", 0), ("t.new", 0), ("t.new", 1)]
    house.done(house.state.shares.know_end("t.new", "id of t.new", 1, 3, 0))
    assert house.acquire("a") == [(0, 3, 1)]
    house.join("b", topics=("u",))
    house.done(house.state.shares.know_end("t.new", "id of t.new", 1, 9, 0))
    assert house.acquire("b") == [], "it does not read those"


@pytest.mark.parametrize(("topics", "pattern"), [(("t",), "t"), ((), "("), ((), ""), ((), "x" * 2_000), ((), None)])
def test_a_subscription_that_is_none_is_refused(topics: tuple[str, ...], pattern: str | None) -> None:
    with pytest.raises(InvalidArgument):
        House().join("a", topics=topics, pattern=pattern)
