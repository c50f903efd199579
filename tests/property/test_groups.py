"""Groups under random joins, leaves, crashes, lost replies, late calls, restarts and topics that come, grow and go.

Invariants after every event: no partition has two owners, neither in the group's eyes nor among the members that it
listens to, nor ever in one assignment epoch; epochs only grow; positions never move back; the records replayed, and the
snapshot replayed, give the same state. Once events stop, every partition is owned and the group is stable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raystream import messages as m
from raystream.core.group_state import Group
from raystream.core.groups import Groups
from raystream.core.records import Decision, Record, Removed, from_pair, to_pair
from raystream.core.targets import chosen_assignor
from raystream.errors import FencedMember, RaystreamError, UnknownMember

GROUP = "g"
SESSION_MS = 1000
REBALANCE_MS = 1700
MEMBERS = st.sampled_from(["a", "b", "c", "d", "e"])
TOPICS = st.sampled_from(["one", "two", "tree"])
Partition = tuple[str, int]


@dataclass
class Client:
    """A member as it sees itself: what it works on, and what of that it has been told to give up."""

    topics: tuple[str, ...] = ()
    pattern: str | None = None
    epoch: int = 0
    holds: dict[Partition, int] = field(default_factory=dict)
    closing: set[Partition] = field(default_factory=set)
    position: dict[Partition, int] = field(default_factory=dict)
    assignor: str = "sticky"
    instance: str = ""

    def start_over(self) -> None:
        self.epoch = 0
        self.holds.clear()
        self.closing.clear()

    def wants(self, topic: str) -> bool:
        return topic in self.topics if self.pattern is None else re.fullmatch(self.pattern, topic) is not None


class GroupMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups()
        self.log: list[Record | Removed] = []
        self.topics: dict[str, int] = {}
        self.created: Counter[str] = Counter()
        self.clients: dict[str, Client] = {}
        self.epochs: Counter[str] = Counter()
        self.given: dict[tuple[str, int, int], str] = {}
        self.positions: dict[Partition, int] = {}
        self.late: list[m.HeartbeatRequest | m.CommitRequest] = []
        self.sequence = 0
        self.lives: Counter[str] = Counter()
        self.now_ms = 0.0
        self.wall_ms = 1_800_000_000_000

    @initialize(one=st.integers(1, 6), two=st.integers(0, 4))
    def create_topics(self, one: int, two: int) -> None:
        self._set_topics({"one": one} | ({"two": two} if two else {}))

    def _set_topics(self, topics: dict[str, int]) -> None:
        self.created.update(topic for topic in topics if topic not in self.topics)
        self.topics = topics
        self._replay(self.groups.know_topics({topic: f"{topic}/{self.created[topic]}" for topic in topics}))

    def _replay(self, decision: Decision) -> Any:
        for record in decision.records:
            self.groups.replay(record, self.now_ms)
        self.log += decision.records
        return decision.reply

    def _request(self, member: str) -> m.HeartbeatRequest:
        self.sequence += 1
        client = self.clients[member]
        return m.HeartbeatRequest(
            group=GROUP,
            member_id=member,
            member_epoch=client.epoch,
            topics=client.topics,
            pattern=client.pattern,
            owned=tuple(client.holds) if client.epoch else (),
            client=member,
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            sequence=self.sequence,
            assignor=client.assignor,
            instance_id=client.instance,
            node_id=member,
        )

    def _heartbeat(self, member: str, *, lose_reply: bool = False) -> None:
        client = self.clients[member]
        try:
            decision = self.groups.heartbeat(self._request(member), self.topics, self.now_ms)
        except (UnknownMember, FencedMember) as error:
            if getattr(error, "instance_id", ""):
                assert client.instance, "only static members are replaced"
                del self.clients[member]  # a life that joined later took its place: this one ends
                return
            assert client.epoch != 0
            client.start_over()
            return
        reply: m.HeartbeatReply = self._replay(decision)
        if lose_reply:
            return
        assigned = {(topic, partition): epoch for topic, partition, epoch in reply.assigned}
        assert all(epoch <= reply.member_epoch for epoch in assigned.values()), "it can commit what it has at once"
        assert reply.member_epoch >= client.epoch
        client.epoch = reply.member_epoch
        client.closing = {partition for partition in client.holds if partition not in assigned}
        for partition in assigned.keys() - client.holds.keys():
            client.position[partition] = self.positions.get(partition, 0)
        client.holds.update(assigned)

    @rule(instance=st.sampled_from(["s", "t"]), names=st.sets(TOPICS, min_size=1), ends=st.booleans())
    def start_a_life_of_a_static_member(self, instance: str, names: set[str], ends: bool) -> None:
        """Its group may take it for one that replaces a life that goes on, or has ended without a word (`ends`)."""
        former = f"{instance}#{self.lives[instance]}"
        if ends:
            self.clients.pop(former, None)
        self.lives[instance] += 1
        before = self._group()
        held = {p for p, owner in before.holder.items() if not owner.startswith(f"{instance}#")}
        kept = {p: before.holder[p] for p in held}
        life = f"{instance}#{self.lives[instance]}"
        self.clients[life] = Client(topics=tuple(sorted(names)), instance=instance)
        self._heartbeat(life)
        assert {p: owner for p, owner in self._group().holder.items() if p in held} == kept
        assert [name for name in self._group().members if name.startswith(f"{instance}#")] == [life]

    @rule(instance=st.sampled_from(["s", "t"]), back=st.integers(0, 2), let_go=st.booleans())
    def a_life_beats(self, instance: str, back: int, let_go: bool) -> None:
        self.beat(f"{instance}#{self.lives[instance] - back}", lose_reply=False, let_go=let_go)

    @rule(instance=st.sampled_from(["s", "t"]), back=st.integers(0, 2), late=st.booleans())
    def a_life_commits(self, instance: str, back: int, late: bool) -> None:
        self.commit(f"{instance}#{self.lives[instance] - back}", late)

    @rule(member=MEMBERS, assignor=st.sampled_from(["sticky", "range", "roundrobin"]))
    def join_again_with_an_assignor(self, member: str, assignor: str) -> None:
        client = self.clients.get(member)
        if client is not None:
            client.start_over()
            client.assignor = assignor
            self._heartbeat(member)

    @rule(member=MEMBERS, names=st.sets(TOPICS, min_size=1), pattern=st.sampled_from([None, None, "t.*", "(one|tree)"]))
    def subscribe(self, member: str, names: set[str], pattern: str | None) -> None:
        client = self.clients.setdefault(member, Client())
        client.topics, client.pattern = tuple(sorted(names)), pattern
        self._heartbeat(member)

    @rule(member=MEMBERS, lose_reply=st.booleans(), let_go=st.booleans())
    def beat(self, member: str, lose_reply: bool, let_go: bool) -> None:
        client = self.clients.get(member)
        if client is None:
            return
        if let_go:
            self._let_go(client)
        self._heartbeat(member, lose_reply=lose_reply)

    @staticmethod
    def _let_go(client: Client) -> None:
        for partition in client.closing:
            del client.holds[partition]
        client.closing.clear()

    @rule(member=MEMBERS, let_go=st.booleans())
    def beat_late(self, member: str, let_go: bool) -> None:
        """A heartbeat that its sender gives up, and that arrives some time after others."""
        client = self.clients.get(member)
        if client is not None:
            if let_go:
                self._let_go(client)
            self.late.append(self._request(member))

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def something_late_arrives(self, data: st.DataObject) -> None:
        request = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        if request.member_id not in self.clients:
            return  # a process that is gone has no calls on their way
        try:
            if isinstance(request, m.CommitRequest):
                self._replay(self.groups.commit(request))
            else:
                self._replay(self.groups.heartbeat(request, self.topics, self.now_ms))
        except (UnknownMember, FencedMember):
            pass

    @rule(member=MEMBERS)
    def crash_and_come_back_with_nothing(self, member: str) -> None:
        if member in self.clients:
            self.clients[member].start_over()

    @rule(member=MEMBERS)
    def leave(self, member: str) -> None:
        if self.clients.pop(member, None) is not None:
            request = m.HeartbeatRequest(group=GROUP, member_id=member, member_epoch=-1)
            self._replay(self.groups.heartbeat(request, self.topics, self.now_ms))

    @rule(member=MEMBERS)
    def vanish(self, member: str) -> None:
        self.clients.pop(member, None)

    @rule(passed_ms=st.integers(1, 1200))
    def time_passes(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self._replay(self.groups.expire(self.now_ms))
        first = self.groups.next_expiry_ms()
        assert first is None or first > self.now_ms

    @rule(days=st.integers(0, 4))
    def days_pass_and_somebody_looks_for_what_is_forgotten(self, days: int) -> None:
        self.wall_ms += days * 86_400_000
        kept = dict(self._group().offsets)
        self._replay(self.groups.expire_offsets(self.wall_ms))
        if self._group().members:
            assert self._group().offsets == kept, "a group that lives keeps its positions"
        elif not self._group().offsets:
            self.positions = {}

    @rule(topic=TOPICS)
    def grow(self, topic: str) -> None:
        self._set_topics({**self.topics, topic: self.topics.get(topic, 0) + 1})

    @rule(topic=TOPICS)
    def delete_topic(self, topic: str) -> None:
        self._set_topics({name: count for name, count in self.topics.items() if name != topic})
        self.positions = {partition: at for partition, at in self.positions.items() if partition[0] != topic}

    @rule()
    def restart_the_coordinator(self) -> None:
        self.groups = self._replayed(self.log)
        self._set_topics(self.topics)
        self.late.clear()  # calls to an actor end with it

    @rule(member=MEMBERS, late=st.booleans())
    def commit(self, member: str, late: bool) -> None:
        client = self.clients.get(member)
        if client is None or not client.holds:
            return
        partition = min(client.holds)
        client.position[partition] += 1
        self.sequence += 1
        request = m.CommitRequest(
            group=GROUP,
            member_id=member,
            member_epoch=client.epoch,
            offsets=(m.CommittedOffset(*partition, client.position[partition]),),
            sequence=self.sequence,
        )
        if late:
            self.late.append(request)
            return
        try:
            self._replay(self.groups.commit(request))
        except (FencedMember, UnknownMember):
            assert self._group().holder.get(partition) != member or not self._listens_to(member)

    def _replayed(self, log: Iterable[Record | Removed]) -> Groups:
        again = Groups()
        for record in log:
            again.replay(from_pair(*to_pair(record)), self.now_ms)
        return again

    def _group(self) -> Group:
        return self.groups._groups.get(GROUP) or Group(GROUP)

    def _listens_to(self, member: str) -> bool:
        known = self._group().members.get(member)
        return known is not None and self.clients[member].epoch in {known.epoch, known.previous_epoch} - {0}

    @invariant()
    def no_partition_has_two_owners(self) -> None:
        group = self._group()
        held = [h[:2] for member in group.members.values() for h in member.holds]
        assert len(held) == len(set(held))
        assert group.holder == {h[:2]: name for name, member in group.members.items() for h in member.holds}
        for name, member in group.members.items():
            for given in member.assigned:
                assert self.given.setdefault(given, name) == name, "two owners in one assignment epoch"
                assert given[2] <= member.epoch

    @invariant()
    def members_that_are_heard_work_on_different_partitions(self) -> None:
        worked = Counter(p for name, client in self.clients.items() if self._listens_to(name) for p in client.holds)
        assert max(worked.values(), default=1) == 1

    @invariant()
    def epochs_only_grow(self) -> None:
        group = self._group()
        if group.exists:
            assert group.epoch >= self.epochs["group"]
            self.epochs["group"] = group.epoch
        for name, member in group.members.items():
            assert self.epochs[name] <= member.epoch <= group.epoch
            self.epochs[name] = member.epoch

    @invariant()
    def positions_never_move_back(self) -> None:
        now = {partition: record.offset for partition, record in self._group().offsets.items()}
        for partition, offset in self.positions.items():
            assert now[partition] >= offset
        assert all(topic in self.topics for topic, _ in now)
        self.positions = now

    @invariant()
    def replay_gives_the_same_state(self) -> None:
        ours = self._group()
        for log in (iter(self.log), self.groups.snapshot()):
            again = self._replayed(log)._groups.get(GROUP) or Group(GROUP)
            assert (ours.members, ours.offsets, ours.holder) == (again.members, again.offsets, again.holder)
            assert not ours.exists or ours.epoch == again.epoch

    @invariant()
    def the_next_expiry_is_the_first(self) -> None:
        group = self._group()
        dues = [group.presence[name].due_ms(member) for name, member in group.members.items()]
        assert self.groups.next_expiry_ms() == min(dues, default=None)

    def teardown(self) -> None:
        for _ in range(12):
            self.now_ms += SESSION_MS / 3
            for member in list(self.clients):
                self._let_go(self.clients[member])
                self._heartbeat(member)
            self._replay(self.groups.expire(self.now_ms))
        clients = self.clients.values()
        wanted = {
            (topic, number)
            for topic, count in self.topics.items()
            if any(client.wants(topic) for client in clients)
            for number in range(count)
        }
        assert set(self._group().holder) == wanted
        assert sorted(p for client in clients for p in client.holds) == sorted(wanted)
        assert all(client.wants(topic) for client in clients for topic, _ in client.holds)
        range_chosen = self.clients and chosen_assignor(self._group().members.values()) == "range"
        if len({(client.topics, client.pattern) for client in clients}) == 1 and not range_chosen:
            counts = [len(client.holds) for client in clients]
            assert max(counts) - min(counts) <= 1
        if self.clients:
            assert self.groups.describe(GROUP, self.now_ms).state == "stable"
            before = len(self.log)
            for member in self.clients:
                self._heartbeat(member)
            assert len(self.log) == before, "a group at rest writes nothing"
        else:
            assert not self._group().members


TestGroups = GroupMachine.TestCase
TestGroups.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_a_request_that_is_refused_leaves_no_trace() -> None:
    groups = Groups()
    for request in (
        m.HeartbeatRequest(group=GROUP, member_id="a", member_epoch=0),
        m.HeartbeatRequest(group=GROUP, member_id="a", member_epoch=3, topics=("one",)),
        m.HeartbeatRequest(group="", member_id="a", member_epoch=0, topics=("one",)),
    ):
        try:
            groups.heartbeat(request, {"one": 1}, 0)
        except RaystreamError:
            continue
        raise AssertionError("it was not refused")
    assert vars(groups)["_groups"] == {}
