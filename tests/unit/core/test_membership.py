"""Heartbeats: who is heard, who is refused, and what moves."""

from __future__ import annotations

from typing import Any

import pytest

from raystream import messages as m
from raystream.core.groups import Groups
from raystream.core.records import Decision, Record, Removed
from raystream.errors import FencedMember, GroupNotFound, InvalidArgument, Overloaded, UnknownMember

Owned = tuple[tuple[str, int], ...]


class House:
    """Groups, and everything that was written down."""

    def __init__(self, **topics: int) -> None:
        self.groups = Groups()
        self.topics: dict[str, int] = topics
        self.log: list[Record | Removed] = []
        self.now_ms = 0.0

    def done(self, decision: Decision) -> Any:
        for record in decision.records:
            self.groups.replay(record, self.now_ms)
        self.log += decision.records
        return decision.reply

    def beat(self, member: str, epoch: int, owned: Owned = (), **fields: Any) -> m.HeartbeatReply:
        request = m.HeartbeatRequest(
            **{
                "group": "g",
                "member_id": member,
                "member_epoch": epoch,
                "topics": ("t",),
                "owned": owned,
                "client": f"client {member}",
                **fields,
            }
        )
        reply: m.HeartbeatReply = self.done(self.groups.heartbeat(request, self.topics, self.now_ms))
        return reply

    def restart(self) -> None:
        self.groups = Groups()
        for record in self.log:
            self.groups.replay(record, self.now_ms)


def owned(reply: m.HeartbeatReply) -> Owned:
    return tuple(held[:2] for held in reply.assigned)


def test_a_group_at_rest_writes_nothing() -> None:
    house = House(t=4)
    reply = house.beat("a", 0)
    before = len(house.log)
    assert house.beat("a", 1, owned(reply)) == house.beat("a", 1, owned(reply)) == house.beat("a", 0)
    assert len(house.log) == before


def test_a_change_of_one_member_writes_that_member_alone() -> None:
    house = House(t=100)
    replies = {name: house.beat(name, 0) for name in "abcde"}
    before = len(house.log)
    house.beat("f", 0)
    assert len(house.log) - before == 2
    house.beat("a", replies["a"].member_epoch, owned(replies["a"]))
    assert len(house.log) - before == 3


@pytest.mark.parametrize("restarted", [False, True])
def test_any_number_of_lost_replies_leaves_a_member_in_place(restarted: bool) -> None:
    house = House(t=4)
    reply = house.beat("a", 0)
    for partitions in (5, 6, 7):
        house.topics = {"t": partitions}
        house.beat("a", 1, owned(reply))  # lost
        if restarted:
            house.restart()
    again = house.beat("a", 1, owned(reply))
    assert (again.member_epoch, len(again.assigned)) == (4, 7)
    assert {held for held in again.assigned if held[1] < 4} == set(reply.assigned), "what stays is not withdrawn"


def test_a_plan_that_a_restart_lost_gets_an_epoch_of_its_own() -> None:
    house = House(t=4)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    house.restart()
    assert house.beat("b", 2).group_epoch == 3
    assert house.beat("a", 1, mine).group_epoch == 3
    house.beat("a", 3, mine[:2])
    assert [held[2] for held in house.beat("b", 3).assigned] == [3, 3]
    house.restart()
    assert house.beat("b", 3, mine[2:]).group_epoch == 3, "everybody has what they should: nothing begins"


def test_an_epoch_that_is_not_the_members_is_fenced() -> None:
    house = House(t=2)
    with pytest.raises(UnknownMember, match="join again"):
        house.beat("a", 1)
    house.beat("a", 0)
    for epoch in (2, -2):
        with pytest.raises(FencedMember, match="join again"):
            house.beat("a", epoch)


def test_the_epoch_before_is_good_only_for_what_the_group_counts_as_the_members() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    kept = owned(house.beat("a", 1, mine))
    house.beat("a", 1, kept)
    assert owned(house.beat("a", 1, kept)) == kept, "its reply was lost"
    with pytest.raises(FencedMember):
        house.beat("a", 1, mine)


def test_a_heartbeat_that_was_overtaken_does_not_give_up_what_came_later() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0, sequence=1))
    house.beat("b", 0)
    kept = owned(house.beat("a", 1, mine))
    first = house.beat("b", 2, sequence=1)
    assert not first.assigned
    late: dict[str, Any] = {"epoch": 2, "sequence": 2}  # b sends it, gives it up, and sends another
    house.beat("a", 2, kept)
    came = owned(house.beat("b", 2, sequence=3))
    house.topics = {"t": 1}  # b is to give its partition up, and still works on it
    house.beat("b", 2, came, sequence=4)
    with pytest.raises(FencedMember, match="overtaken"):
        house.beat("b", **late)
    with pytest.raises(FencedMember, match="overtaken"):
        house.beat("b", 0, sequence=2)
    assert house.groups.describe("g", 0).members[1].owned == came


def test_a_join_from_before_the_members_removal_is_overtaken() -> None:
    house = House(t=2)
    house.beat("a", 0, sequence=1)
    house.now_ms = 20_000
    house.done(house.groups.expire(house.now_ms))
    house.beat("a", 0, sequence=9)
    with pytest.raises(FencedMember, match="overtaken"):
        house.beat("a", 0, sequence=8)


def test_requests_without_a_sequence_are_not_counted() -> None:
    house = House(t=2)
    reply = house.beat("a", 0, sequence=3)
    assert house.beat("a", 1, owned(reply)) == house.beat("a", 0) == reply
    with pytest.raises(FencedMember, match="overtaken"):
        house.beat("a", 1, owned(reply), sequence=2)


def test_an_overtaken_heartbeat_is_refused_also_where_nothing_is_new() -> None:
    house = House(t=1)
    mine = owned(house.beat("a", 0, sequence=1))
    house.beat("a", 1, mine, sequence=2)
    house.beat("a", 1, mine, sequence=4)
    with pytest.raises(FencedMember, match="overtaken"):
        house.beat("a", 1, mine, sequence=3)
    house.beat("a", 1, mine, sequence=5)


def test_a_member_that_comes_back_hears_of_its_new_assignment() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0))
    house.topics = {"t": 3}
    grown = house.beat("a", 1, mine)
    assert house.beat("a", 2, owned(grown)) == grown
    back = house.beat("a", 0)
    assert [held[2] for held in back.assigned] == [2, 2, 2]
    assert house.beat("a", 2, owned(back)) == back


def test_topics_that_nobody_reads_begin_no_epoch() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0))
    before = len(house.log)
    house.topics = {"t": 2, "unread": 4}
    assert house.beat("a", 1, mine).group_epoch == 1
    assert len(house.log) == before


def test_a_repeated_call_carries_its_own_sequence_and_is_heard() -> None:
    house = House(t=2)
    reply = house.beat("a", 0, sequence=5)
    assert house.beat("a", 0, sequence=5) == reply
    assert house.beat("a", 1, owned(reply), sequence=6) == house.beat("a", 1, owned(reply), sequence=6)


def test_what_comes_can_be_committed_while_something_else_is_still_to_go() -> None:
    house = House(one=2, two=0)
    both: dict[str, Any] = {"topics": ("one", "two")}
    mine = owned(house.beat("a", 0, **both))
    house.beat("b", 0, **both)
    house.topics = {"one": 2, "two": 2}
    reply = house.beat("a", 1, mine, **both)  # to give one up, and given one, in the same reply
    assert len(reply.assigned) == 2 and {held[0] for held in reply.assigned} == {"one", "two"}
    position = m.CommittedOffset("two", reply.assigned[-1][1], 9)
    house.done(house.groups.commit(m.CommitRequest(group="g", member_id="a", member_epoch=3, offsets=(position,))))
    assert position in house.groups.fetch_offsets("g")


def test_a_plan_that_is_on_its_way_is_kept_when_another_member_joins() -> None:
    house = House(t=12)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    kept = owned(house.beat("a", 1, mine))
    assert len(kept) == 6
    house.beat("c", 0)
    assert len(owned(house.beat("a", 2, mine))) == 4
    assert len(house.beat("b", 2).assigned) == 0
    house.beat("a", 3, kept[:4])
    got = {name: set(owned(house.beat(name, epoch))) for name, epoch in (("b", 3), ("c", 3))}
    assert got["b"] < set(mine) - set(kept), "b gets of what a was giving up for it"
    assert {name: len(parts) for name, parts in got.items()} == {"b": 4, "c": 4}


def test_a_member_that_dies_before_anybody_moved_changes_nothing_for_the_others() -> None:
    house = House(t=4)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    house.beat("b", -1)
    assert house.beat("a", 1, mine).assigned == tuple((*p, 1) for p in mine)


def test_a_member_that_comes_and_goes_before_anybody_moved_moves_nothing() -> None:
    house = House(t=12)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    a = owned(house.beat("a", 1, mine))
    house.beat("a", 2, a)
    b = owned(house.beat("b", 2))
    house.beat("c", 0)
    house.beat("c", -1)
    assert (owned(house.beat("a", 2, a)), owned(house.beat("b", 2, b))) == (a, b)


def test_a_group_is_stable_once_everybody_has_heard() -> None:
    house = House(t=1)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    assert house.groups.describe("g", 0).state == "reconciling"
    house.beat("a", 1, mine)
    assert house.groups.describe("g", 0).state == "stable"


def test_a_partition_held_on_to_for_a_while_is_free_once_it_is_let_go() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0))
    house.beat("b", 0)
    kept = owned(house.beat("a", 1, mine))
    for _ in range(3):
        house.beat("a", 2, mine)
        assert house.beat("b", 2).assigned == ()
    house.beat("a", 2, kept)
    assert len(house.beat("b", 2).assigned) == 1


def test_progress_restarts_the_time_to_give_up() -> None:
    house = House(t=6)
    mine = owned(house.beat("a", 0, rebalance_timeout_ms=5000))
    house.beat("b", 0)
    kept = owned(house.beat("a", 1, mine))
    house.now_ms = 4000
    house.beat("c", 0)
    left = owned(house.beat("a", 2, mine))  # a third partition is to go now, besides the three since 0
    assert len(left) == 2
    assert house.groups.next_expiry_ms() == 5000
    house.beat("a", 3, kept)
    house.now_ms = 6000
    assert house.groups.expire(6000).records == (), "what was due at 5 s is given up"
    house.now_ms = 9000
    assert [r for r in house.groups.expire(9000).records if isinstance(r, Removed)] == [Removed("member", ("g", "a"))]


def test_members_that_go_together_begin_one_epoch() -> None:
    house = House(t=4)
    for name in "abc":
        house.beat(name, 0)
    house.now_ms = 9000
    house.beat("c", 3)
    assert house.groups.next_expiry_ms() == 10_000
    house.now_ms = 10_000
    decision = house.groups.expire(house.now_ms)
    assert len(decision.records) == 3 and house.groups.expire(house.now_ms) == decision, "deciding changes nothing"
    house.done(decision)
    assert house.groups.next_expiry_ms() == 19_000
    assert house.beat("c", 3).group_epoch == 4


def test_a_group_without_members_and_positions_is_gone_and_its_epochs_are_not_used_again() -> None:
    house = House(t=1)
    assert house.beat("a", 0).member_epoch == 1
    house.beat("a", -1)
    with pytest.raises(GroupNotFound):
        house.groups.describe("g", 0)
    assert house.groups._groups == {}
    assert house.beat("a", 0).member_epoch == 2
    house.beat("a", -1)
    house.restart()
    assert house.beat("a", 0).member_epoch == 3


def test_leaving_a_group_that_never_was_is_no_error() -> None:
    house = House(t=1)
    assert house.beat("a", -1).member_epoch == -1
    assert house.log == []


@pytest.mark.parametrize(
    ("pattern", "matched"), [("t.*", {"t", "tt"}), ("t", {"t"}), (".*", {"t", "tt", "u"}), ("x", set())]
)
def test_a_pattern_matches_whole_names_and_no_internal_topics(pattern: str, matched: set[str]) -> None:
    house = House(t=1, tt=1, u=1, __consumer_offsets=1)
    reply = house.beat("a", 0, topics=(), pattern=pattern)
    assert {held[0] for held in reply.assigned} == matched
    house.topics = {**house.topics, "t3": 1}
    after = house.beat("a", reply.member_epoch, owned(reply), topics=(), pattern=pattern)
    assert ("t3" in {held[0] for held in after.assigned}) == (pattern in ("t.*", ".*"))


def test_a_subscription_may_change_on_the_way() -> None:
    house = House(t=1, u=1)
    reply = house.beat("a", 0)
    house.beat("a", 1, owned(reply))
    reply = house.beat("a", 1, owned(reply), topics=("u", "u"))
    assert (reply.member_epoch, owned(reply)) == (2, (("u", 0),))
    with pytest.raises(InvalidArgument, match="regular expression"):
        house.beat("a", 2, owned(reply), pattern="(")
    with pytest.raises(InvalidArgument, match="at least one topic"):
        house.beat("a", 2, owned(reply), topics=())
    assert house.beat("a", 2, owned(reply), topics=("u",)).member_epoch == 2


def test_idle_members_learn_who_has_what() -> None:
    house = House(t=1)
    assert house.beat("a", 0).owners == ()
    assert house.beat("b", 0).owners == (("client a", "t", 0),)
    house.beat("a", -1)
    assert house.beat("c", 0).owners == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"group": ""},
        {"group": "g" * 256},
        {"group": "line\n"},
        {"group": "\ud800"},
        {"group": 7},
        {"group": None},
        {"member_id": ""},
        {"member_id": "x" * 256},
        {"member_id": None},
        {"client": "x" * 2000},
        {"client": None},
        {"topics": ()},
        {"topics": ("",)},
        {"topics": (3,)},
        {"topics": tuple(f"t{n}" for n in range(10_001))},
        {"pattern": "("},
        {"pattern": "x" * 2000},
        {"pattern": 5},
        {"pattern": "a{99999999999}"},
        {"session_timeout_ms": 0},
        {"session_timeout_ms": float("inf")},
        {"session_timeout_ms": float("nan")},
        {"rebalance_timeout_ms": 10**9},
        {"rebalance_timeout_ms": "5"},
    ],
)
def test_a_bad_join_is_refused_with_a_sentence(fields: dict[str, Any]) -> None:
    house = House(t=1)
    with pytest.raises(InvalidArgument) as caught:
        house.beat(**{"member": "a", "epoch": 0, **fields})
    assert 10 < len(str(caught.value)) < 500
    assert house.groups._groups == {}


def test_a_group_has_room_for_so_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystream.core.membership.MAX_MEMBERS", 2)
    house = House(t=1)
    house.beat("a", 0)
    house.beat("b", 0)
    with pytest.raises(Overloaded, match="2 members"):
        house.beat("c", 0)
    house.beat("a", 0)


def test_a_described_group_tells_members_states_and_silence() -> None:
    house = House(t=2)
    mine = owned(house.beat("a", 0))
    assert house.groups.describe("g", 0).state == "stable"
    house.now_ms = 1500
    house.beat("b", 0)
    info = house.groups.describe("g", house.now_ms)
    assert (info.state, info.epoch, info.topics) == ("reconciling", 2, ("t",))
    assert [(x.member_id, x.epoch, x.owned, x.last_heartbeat_ms_ago) for x in info.members] == [
        ("a", 1, mine, 1500),
        ("b", 2, (), 0),
    ]
    assert [group.group for group in house.groups.list(0)] == ["g"]
    house.restart()
    assert house.groups.describe("g", house.now_ms).members == tuple(
        m.MemberInfo(member_id=x.member_id, client=x.client, epoch=x.epoch, owned=x.owned, last_heartbeat_ms_ago=0)
        for x in info.members
    )
