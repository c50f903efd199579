"""What a group is to look like: which assignor counts, and what a static member's next life takes over."""

from __future__ import annotations

from typing import Any

import pytest

from raystream import messages as m
from raystream.core.assignors import Topics
from raystream.core.records import Removed
from raystream.errors import FencedMember, InvalidArgument, UnknownMember
from tests.unit.core.test_membership import House, owned


def test_the_assignor_that_most_members_name_counts_and_the_first_by_name_among_equals() -> None:
    house = House(t=4, u=4)
    house.beat("a", 0, topics=("t", "u"), assignor="sticky")
    house.beat("b", 0, topics=("t", "u"), assignor="range")
    target = house.groups._groups["g"].plan
    assert target is not None
    assert target.target["a"] == {("t", 0), ("t", 1), ("u", 0), ("u", 1)}, "one each: range comes first by name"
    house.beat("c", 0, topics=("t", "u"), assignor="sticky")
    target = house.groups._groups["g"].plan
    assert target is not None and sorted(map(len, target.target.values())) == [2, 3, 3], "range would give 4, 2, 2"


def test_an_assignor_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no assignor 'fair': there are sticky, range, roundrobin"):
        House(t=1).beat("a", 0, assignor="fair")


@pytest.mark.parametrize("assignor", ["sticky", "range", "roundrobin"])
def test_a_new_life_of_a_static_member_takes_over_at_once_and_nothing_else_moves(assignor: str) -> None:
    house = House(t=7)
    how: dict[str, Any] = {"assignor": assignor}
    first = house.beat("z", 0, instance_id="one", **how)
    for _ in range(4):  # until everybody has what they should
        first = house.beat("z", first.member_epoch, owned(first), **how)
        other = house.beat("m", 0, **how)
    for life in ("a", "zz"):
        again = house.beat(life, 0, instance_id="one", client="new", **how)
        assert owned(again) == owned(first)
        kept = house.beat("m", other.member_epoch, owned(other), **how)
        assert (owned(kept), kept.assigned) == (owned(other), other.assigned)
        assert house.groups.describe("g", 0).state == "stable"
        house.restart()
        with pytest.raises(FencedMember, match=r"joined group 'g' with group_instance_id='one' \(new\)") as refused:
            house.beat("z", first.member_epoch, owned(first))
        assert refused.value.instance_id == "one"


def test_an_older_life_cannot_come_back_however_late_its_join_arrives() -> None:
    house = House(t=2)
    mine = house.beat("old", 0, instance_id="one")
    new = house.beat("new", 0, instance_id="one")
    with pytest.raises(FencedMember, match="has taken over"):
        house.beat("old", 0, instance_id="one")
    commit = m.CommitRequest(
        group="g", member_id="old", member_epoch=mine.member_epoch, offsets=(m.CommittedOffset("t", 0, 1),)
    )
    with pytest.raises(FencedMember, match="has taken over"):
        house.groups.commit(commit)
    assert house.beat("new", 0, instance_id="one") == house.beat("new", new.member_epoch, owned(new)), "repeated"
    house.beat("old", -1, instance_id="one")
    assert owned(house.beat("new", new.member_epoch, owned(new))) == owned(new), "nor can it leave for the new one"


def test_a_static_member_that_stays_away_is_removed_like_others() -> None:
    house = House(t=2)
    house.beat("old", 0, instance_id="one", session_timeout_ms=1000)
    house.beat("b", 0)
    house.now_ms = 1000.0
    gone = house.groups.expire(house.now_ms)
    house.done(gone)
    assert Removed("member", ("g", "old")) in gone.records
    assert len(house.beat("b", 2).assigned) == 2
    with pytest.raises(UnknownMember):
        house.beat("old", 1)


def test_a_partition_given_anew_goes_beside_its_leader_and_stays_when_the_leader_moves() -> None:
    house = House()
    house.topics = Topics({"t": 1}, {("t", 0): "n2"})
    house.beat("a", 0, node_id="n1")
    house.topics = Topics({"t": 2}, {("t", 0): "n2", ("t", 1): "n2"})
    house.beat("b", 0, node_id="n2")
    first = house.beat("a", 1, (("t", 0),), node_id="n1")
    assert (owned(first), owned(house.beat("b", 2))) == ((("t", 0),), (("t", 1),))
    log = len(house.log)
    house.topics = Topics({"t": 2}, {("t", 0): "n2", ("t", 1): "n1"})
    assert owned(house.beat("b", 2, (("t", 1),))) == (("t", 1),)
    assert owned(house.beat("a", first.member_epoch, (("t", 0),))) == (("t", 0),)
    assert len(house.log) == log
