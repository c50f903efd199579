"""Groups under random joins, leaves, silences, lost replies, restarts and growing topics.

Invariants after every event: no partition has two owners; epochs only grow; only the holder may commit; the records
replayed give the same state. Once events stop, every partition is owned, and counts differ by one at most.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raystream import messages as m
from raystream.core.groups import Groups
from raystream.core.records import Record, Removed, from_pair, to_pair
from raystream.errors import FencedMember, UnknownMember

GROUP = "g"
SESSION_MS = 1000
REBALANCE_MS = 3000
MEMBERS = st.sampled_from(["a", "b", "c", "d", "e"])


class Client:
    """A member as it sees itself: its epoch and what it works on."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.topics = topics
        self.epoch = 0
        self.owned: dict[tuple[str, int], int] = {}


class GroupMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups()
        self.log: list[Record | Removed] = []
        self.topics: dict[str, int] = {}
        self.clients: dict[str, Client] = {}
        self.epochs: Counter[str] = Counter()
        self.now_ms = 0.0

    @initialize(one=st.integers(1, 6), two=st.integers(0, 4))
    def create_topics(self, one: int, two: int) -> None:
        self.topics = {"one": one} | ({"two": two} if two else {})

    def _replay(self, records: tuple[Record | Removed, ...]) -> None:
        for record in records:
            self.groups.replay(record, self.now_ms)
        self.log += records

    def _heartbeat(self, member: str, *, lose_reply: bool = False) -> None:
        client = self.clients[member]
        request = m.HeartbeatRequest(
            group=GROUP,
            member_id=member,
            member_epoch=client.epoch,
            topics=client.topics,
            owned=tuple(client.owned),
            client=member,
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
        )
        try:
            decision = self.groups.heartbeat(request, self.topics, self.now_ms)
        except (UnknownMember, FencedMember):
            client.epoch = 0
            client.owned.clear()
            return
        self._replay(decision.records)
        if lose_reply:
            return
        reply: m.HeartbeatReply = decision.reply
        client.epoch = reply.member_epoch
        client.owned = {(topic, partition): epoch for topic, partition, epoch in reply.assigned}

    @rule(member=MEMBERS, both=st.booleans())
    def join(self, member: str, both: bool) -> None:
        topics = ("one", "two") if both else ("one",)
        client = self.clients.setdefault(member, Client(topics))
        client.topics = topics
        self._heartbeat(member)

    @rule(member=MEMBERS, lose_reply=st.booleans())
    def beat(self, member: str, lose_reply: bool) -> None:
        if member in self.clients:
            self._heartbeat(member, lose_reply=lose_reply)

    @rule(member=MEMBERS)
    def crash_and_come_back_with_nothing(self, member: str) -> None:
        if member in self.clients:
            self.clients[member].epoch = 0
            self.clients[member].owned.clear()

    @rule(member=MEMBERS)
    def leave(self, member: str) -> None:
        if self.clients.pop(member, None) is None:
            return
        request = m.HeartbeatRequest(group=GROUP, member_id=member, member_epoch=-1)
        self._replay(self.groups.heartbeat(request, self.topics, self.now_ms).records)

    @rule(member=MEMBERS)
    def vanish(self, member: str) -> None:
        self.clients.pop(member, None)

    @rule(passed_ms=st.integers(1, 1500))
    def time_passes(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self._replay(self.groups.expire(self.now_ms).records)

    @rule(topic=st.sampled_from(["one", "two"]))
    def grow(self, topic: str) -> None:
        self.topics = {**self.topics, topic: self.topics.get(topic, 0) + 1}

    @rule()
    def restart_the_coordinator(self) -> None:
        self.groups = self._replayed()

    @rule(member=MEMBERS)
    def commit(self, member: str) -> None:
        client = self.clients.get(member)
        if client is None or not client.owned:
            return
        topic, partition = next(iter(client.owned))
        request = m.CommitRequest(
            group=GROUP,
            member_id=member,
            member_epoch=client.epoch,
            offsets=(m.CommittedOffset(topic, partition, 1),),
        )
        try:
            self._replay(self.groups.commit(request).records)
        except (FencedMember, UnknownMember):
            assert self._holder().get((topic, partition)) != member or client.epoch == 0

    def _replayed(self) -> Groups:
        again = Groups()
        for record in self.log:
            again.replay(from_pair(*to_pair(record)), self.now_ms)
        return again

    def _holder(self) -> dict[tuple[str, int], str]:
        group = self.groups._groups.get(GROUP)
        return {} if group is None else group.holder

    @invariant()
    def no_partition_has_two_owners(self) -> None:
        group = self.groups._groups.get(GROUP)
        if group is None:
            return
        held = [h[:2] for member in group.members.values() for h in member.holds]
        assert len(held) == len(set(held))
        assert group.holder == {h[:2]: name for name, member in group.members.items() for h in member.holds}

    @invariant()
    def epochs_only_grow(self) -> None:
        group = self.groups._groups.get(GROUP)
        for name, member in (group.members if group else {}).items():
            assert member.epoch <= group.epoch  # type: ignore[union-attr]
        if group is not None:
            assert group.epoch >= self.epochs["group"]
            self.epochs["group"] = group.epoch

    @invariant()
    def replay_gives_the_same_state(self) -> None:
        ours, again = self.groups._groups.get(GROUP), self._replayed()._groups.get(GROUP)
        if ours is None or again is None:
            assert ours is None or not (ours.members or ours.offsets)
            return
        assert (ours.members, ours.offsets, ours.holder) == (again.members, again.offsets, again.holder)
        assert ours.epoch == again.epoch

    def teardown(self) -> None:
        for _ in range(12):
            self.now_ms += SESSION_MS / 2
            for member in list(self.clients):
                self._heartbeat(member)
            self._replay(self.groups.expire(self.now_ms).records)
        readers = {name: client for name, client in self.clients.items() if client.topics}
        if not readers:
            assert not self._holder()
            return
        wanted = {
            (topic, number)
            for topic in {t for client in readers.values() for t in client.topics}
            for number in range(self.topics.get(topic, 0))
        }
        assert set(self._holder()) == wanted
        assert {p for client in readers.values() for p in client.owned} == wanted
        if len({client.topics for client in readers.values()}) == 1:
            counts = [len(client.owned) for client in readers.values()]
            assert max(counts) - min(counts) <= 1
        assert self.groups.describe(GROUP, self.now_ms).state == "stable"


TestGroups = GroupMachine.TestCase
TestGroups.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("members", "partitions"), [(1, 5), (3, 12), (7, 5), (50, 200)])
def test_a_member_that_joins_moves_no_more_than_its_share(members: int, partitions: int) -> None:
    from raystream.core.assignors import sticky

    held = sticky({f"m{i:03}": ["t"] for i in range(members)}, {"t": partitions}, {})
    after = sticky({f"m{i:03}": ["t"] for i in range(members + 1)}, {"t": partitions}, held)
    moved = [partition for partition in held if held[partition] != after[partition]]
    assert all(after[partition] == f"m{members:03}" for partition in moved)
    assert len(moved) <= -(-partitions // (members + 1))
