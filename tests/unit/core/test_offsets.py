"""Positions of a group: who may move them, and when they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raystream import messages as m
from raystream.core.groups import Groups
from raystream.core.records import Decision, from_pair, to_pair
from raystream.errors import FencedMember, GroupNotEmpty, GroupNotFound, InvalidArgument, UnknownMember


class House:
    def __init__(self) -> None:
        self.groups = Groups()
        self.topics = {"t": 2}

    def done(self, decision: Decision) -> int:
        for record in decision.records:
            self.groups.replay(from_pair(*to_pair(record)), 0)
        return len(decision.records)

    def beat(self, member: str, epoch: int, *partitions: int) -> m.HeartbeatReply:
        request = m.HeartbeatRequest(
            group="g",
            member_id=member,
            member_epoch=epoch,
            topics=("t",),
            owned=tuple(("t", number) for number in partitions),
        )
        decision = self.groups.heartbeat(request, self.topics, 0)
        self.done(decision)
        reply: m.HeartbeatReply = decision.reply
        return reply

    def commit(self, member: str, epoch: int, partition: Any, offset: Any, **fields: Any) -> int:
        """How many records it took."""
        position = m.CommittedOffset(fields.pop("topic", "t"), partition, offset, fields.pop("metadata", ""))
        request = m.CommitRequest(group="g", member_id=member, member_epoch=epoch, offsets=(position,), **fields)
        return self.done(self.groups.commit(request))

    def positions(self) -> dict[tuple[str, int], int]:
        return {(p.topic, p.partition): p.offset for p in self.groups.fetch_offsets("g")}


def test_only_the_holder_commits_from_the_epoch_of_its_assignment_on() -> None:
    house = House()
    with pytest.raises(UnknownMember):
        house.commit("a", 1, 0, 5)
    house.beat("a", 0)
    house.commit("a", 1, 1, 5)
    house.beat("b", 0)
    house.beat("a", 1, 0, 1)
    house.commit("a", 1, 1, 6)  # it is to give it up, and has not
    house.beat("a", 2, 0)
    for member, epoch in (("a", 2), ("b", 2)):
        with pytest.raises(FencedMember, match="t-1"):
            house.commit(member, epoch, 1, 7)
    assert house.beat("b", 2).assigned == (("t", 1, 2),)
    with pytest.raises(FencedMember):
        house.commit("b", 1, 1, 7)
    with pytest.raises(FencedMember, match="at epoch 2"):
        house.commit("b", 3, 1, 7)
    house.commit("b", 2, 1, 8)
    assert house.positions() == {("t", 1): 8}


def test_all_positions_move_or_none() -> None:
    house = House()
    house.beat("a", 0)
    offsets = (m.CommittedOffset("t", 0, 5), m.CommittedOffset("u", 0, 5))
    with pytest.raises(FencedMember):
        house.groups.commit(m.CommitRequest(group="g", member_id="a", member_epoch=1, offsets=offsets))
    bad = (offsets[0], m.CommittedOffset("t", 1, -5))
    with pytest.raises(InvalidArgument):
        house.groups.commit(m.CommitRequest(group="g", member_id="a", member_epoch=1, offsets=bad))
    assert house.positions() == {}


def test_an_administrator_is_heard_only_while_nobody_runs() -> None:
    house = House()
    house.commit("", -1, 0, 3)
    house.beat("a", 0)
    with pytest.raises(GroupNotEmpty, match="1 running"):
        house.commit("", -1, 0, 4)
    with pytest.raises(GroupNotEmpty):
        house.groups.delete("g")
    house.beat("a", -1)
    house.commit("", -1, 0, 0)
    assert house.positions() == {("t", 0): 0}


def test_a_commit_that_was_overtaken_does_not_move_a_position_back() -> None:
    house = House()
    house.beat("a", 0)
    house.commit("a", 1, 0, 20, sequence=2)
    house.commit("a", 1, 0, 10, sequence=1)  # sent first, arrives last
    house.commit("a", 1, 1, 10, sequence=1)
    assert house.positions() == {("t", 0): 20, ("t", 1): 10}
    house.commit("a", 1, 0, 5, sequence=3)  # the member seeked back
    assert house.positions()["t", 0] == 5


def test_what_stands_there_already_is_not_written_again() -> None:
    house = House()
    house.beat("a", 0)
    assert house.commit("a", 1, 0, 20) == 1
    assert house.commit("a", 1, 0, 20) == 0
    assert house.commit("a", 1, 0, 20, metadata="from host 3") == 1
    assert house.groups.fetch_offsets("g") == (m.CommittedOffset("t", 0, 20, "from host 3"),)
    assert house.groups.fetch_offsets("never") == ()


@pytest.mark.parametrize(
    ("partition", "offset", "fields"),
    [
        (0, -1, {}),
        (0, 2**63, {}),
        (0, 1.0, {}),
        (0, True, {}),
        (0, "3", {}),
        (0, None, {}),
        (-1, 3, {}),
        (0.5, 3, {}),
        (0, 3, {"topic": ""}),
        (0, 3, {"topic": None}),
        (0, 3, {"metadata": "x" * 5000}),
        (0, 3, {"metadata": None}),
    ],
)
def test_a_bad_position_is_refused_with_a_sentence(partition: Any, offset: Any, fields: dict[str, Any]) -> None:
    house = House()
    with pytest.raises(InvalidArgument):
        house.commit("", -1, partition, offset, **fields)
    assert house.positions() == {}


def test_numpys_integers_are_integers() -> None:
    house = House()
    house.commit("", -1, np.int32(1), np.int64(7))
    assert house.positions() == {("t", 1): 7}


def test_deleting_a_group_forgets_it() -> None:
    house = House()
    for call in (house.groups.delete, lambda name: house.groups.describe(name, 0)):
        with pytest.raises(GroupNotFound):
            call("g")
    house.commit("", -1, 0, 3)
    house.done(house.groups.delete("g"))
    assert house.positions() == {}
    assert house.groups.list(0) == ()


def test_positions_go_with_their_topic_also_when_its_name_comes_back() -> None:
    house = House()
    house.done(house.groups.know_topics({"t": "first", "u": "other"}))
    house.commit("", -1, 0, 3)
    house.commit("", -1, 0, 4, topic="u")
    house.done(house.groups.know_topics({"t": "second", "u": "other"}))
    assert house.positions() == {("u", 0): 4}
    house.done(house.groups.know_topics({"t": "second"}))
    assert house.positions() == {}


def test_positions_of_topics_deleted_while_nobody_looked_go_after_a_restart() -> None:
    house = House()
    house.done(house.groups.know_topics({"t": "first"}))
    house.commit("", -1, 0, 3)
    records = [*house.groups.snapshot()]
    for ids in ({}, {"t": "second"}):
        again = House()
        again.done(Decision(tuple(records)))
        assert again.positions() == {("t", 0): 3}
        again.done(again.groups.know_topics(ids))
        assert again.positions() == {}


def test_a_member_does_not_commit_to_a_topic_that_was_deleted_under_it() -> None:
    house = House()
    house.done(house.groups.know_topics({"t": "first"}))
    house.beat("a", 0)
    house.done(house.groups.know_topics({}))
    assert house.commit("a", 1, 0, 9) == 0, "it would be a position in a later topic of that name"
    house.done(house.groups.know_topics({"t": "second"}))
    assert house.commit("a", 1, 0, 9) == 1


def test_a_topic_that_is_too_new_to_be_listed_takes_commits() -> None:
    house = House()
    house.done(house.groups.know_topics({}))
    house.beat("a", 0)
    assert house.commit("a", 1, 0, 9) == 1
    house.done(house.groups.know_topics({"t": "first"}))
    assert house.positions() == {("t", 0): 9}
