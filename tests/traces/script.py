"""The commands of the golden scripts, over the coordinator's state and members that behave as our consumer does.

    topics t=4 u=2                   all topics there are, with their partition counts
    join a t u | join a /t.*/        a joins, with nothing in its hands, and subscribes to topics or to a pattern
    beat a                           a goes on; it owns what it works on, also what it is still to give up
    beat a epoch=1 owned=t-0,t-1     the same with another epoch, with other partitions
    lose a                           a goes on, and the reply is lost
    release a                        a lets go of what it is to give up, and tells nobody yet
    leave a | after 5000 (ms) | restart | state
    commit a t-0=10 | commit a t-0=10 epoch=1 | commit - t-0=10      "-" is an administrator

A trace shows each record that is written as `+ …` (`- …`: a tombstone), then the reply as `> …` or the error as `! …`.
`t-0@3` is partition 0 of t, assigned in epoch 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from raystream import messages as m
from raystream.core.coordinator import Coordinator
from raystream.core.group_records import GroupRecord, Held, MemberRecord, OffsetRecord
from raystream.core.records import Decision, Pair, Record, Removed
from raystream.errors import Fenced, RaystreamError

GROUP: Final = "g"
Partition = tuple[str, int]


@dataclass
class Member:
    topics: tuple[str, ...]
    pattern: str | None
    epoch: int = 0
    works_on: set[Partition] = field(default_factory=set)
    assigned: set[Partition] = field(default_factory=set)


class GroupScript:
    """One group, its members and its log."""

    def __init__(self) -> None:
        self._state = Coordinator()
        self._log: list[Pair] = []
        self._topics: dict[str, int] = {}
        self._members: dict[str, Member] = {}
        self._now_ms = 0.0

    def run(self, command: str) -> list[str]:
        """What a command leads to, line by line."""
        name, *words = command.split()
        changes = {word.split("=")[0]: word.split("=")[1] for word in words if word.startswith(("epoch=", "owned="))}
        plain = [word for word in words if not word.startswith(("epoch=", "owned="))]
        lines: list[str] = getattr(self, f"do_{name}")(*plain, **changes)
        return lines

    def do_topics(self, *counts: str) -> list[str]:
        self._topics = {word.split("=")[0]: int(word.split("=")[1]) for word in counts}
        return self._decided(self._state.know_topics({topic: f"id of {topic}" for topic in self._topics}))

    def do_join(self, name: str, *topics: str) -> list[str]:
        pattern = topics[0].strip("/") if topics[0].startswith("/") else None
        self._members[name] = Member(() if pattern is not None else topics, pattern)
        return self._heartbeat(name, epoch=0, owned=set())

    def do_beat(self, name: str, epoch: str | None = None, owned: str | None = None) -> list[str]:
        member = self._members[name]
        listed = member.works_on if owned is None else {_partition(word) for word in owned.split(",") if word}
        return self._heartbeat(name, epoch=member.epoch if epoch is None else int(epoch), owned=listed)

    def do_lose(self, name: str) -> list[str]:
        return self._heartbeat(name, self._members[name].epoch, self._members[name].works_on, lost=True)

    def do_release(self, name: str) -> list[str]:
        self._members[name].works_on &= self._members[name].assigned
        return []

    def do_leave(self, name: str) -> list[str]:
        request = m.HeartbeatRequest(group=GROUP, member_id=name, member_epoch=-1)
        del self._members[name]
        return self._decided(self._state.heartbeat(request, self._topics, self._now_ms))

    def do_after(self, passed_ms: str) -> list[str]:
        self._now_ms += float(passed_ms)
        return self._decided(self._state.expire(self._now_ms))

    def do_restart(self) -> list[str]:
        self._state = Coordinator()
        for key, value in self._log:
            self._state.replay_row(key, value, self._now_ms)
        return [f"{len(self._log)} records replayed"]

    def do_commit(self, name: str, *positions: str, epoch: str | None = None) -> list[str]:
        member_id = "" if name == "-" else name
        known = self._members[name].epoch if member_id else -1
        offsets = tuple(
            m.CommittedOffset(*_partition(word.split("=")[0]), offset=int(word.split("=")[1])) for word in positions
        )
        request = m.CommitRequest(
            group=GROUP, member_id=member_id, member_epoch=known if epoch is None else int(epoch), offsets=offsets
        )
        try:
            return self._decided(self._state.commit(request))
        except RaystreamError as error:
            return [_refusal(error)]

    def do_state(self) -> list[str]:
        try:
            info = self._state.groups.describe(GROUP, self._now_ms)
        except RaystreamError as error:
            return [_refusal(error)]
        lines = [f"{info.state}, epoch {info.epoch}"]
        lines += [f"{x.member_id}: epoch {x.epoch}, owns {_listed(x.owned)}" for x in info.members]
        lines += [f"{p.topic}-{p.partition} at {p.offset}" for p in info.offsets]
        due = self._state.next_expiry_ms()
        return [*lines, *([] if due is None else [f"next expiry in {due - self._now_ms:.0f} ms"])]

    def _heartbeat(self, name: str, epoch: int, owned: set[Partition], *, lost: bool = False) -> list[str]:
        member = self._members[name]
        request = m.HeartbeatRequest(
            group=GROUP,
            member_id=name,
            member_epoch=epoch,
            topics=member.topics,
            pattern=member.pattern,
            owned=tuple(sorted(owned)),
            client=f"{name} on node 1",
        )
        try:
            decision = self._state.heartbeat(request, self._topics, self._now_ms)
        except RaystreamError as error:
            if isinstance(error, Fenced):
                self._members[name] = Member(member.topics, member.pattern)
            return [_refusal(error)]
        lines, reply = self._decided(decision), decision.reply
        if lost:
            return [*lines, "> (lost)"]
        member.epoch = reply.member_epoch
        member.assigned = {held[:2] for held in reply.assigned}
        member.works_on |= member.assigned
        owners = "".join(f"; {client} has {topic}-{number}" for client, topic, number in reply.owners)
        return [*lines, f"> epoch {reply.member_epoch}: {_given(reply.assigned)}{owners}"]

    def _decided(self, decision: Decision) -> list[str]:
        for record in decision.records:
            self._state.replay(record, self._now_ms)
        self._log += self._state.encode(decision.records)
        return [_written(record) for record in decision.records]


def _written(record: Record | Removed) -> str:
    match record:
        case GroupRecord():
            return f"+ group: epoch {record.epoch}"
        case MemberRecord():
            giving_up = f", to give up {_given(record.revoking)}" if record.revoking else ""
            epochs = f"epoch {record.epoch} (before: {record.previous_epoch})"
            return f"+ member {record.member_id}: {epochs}, {_given(record.assigned)}{giving_up}"
        case OffsetRecord():
            return f"+ offset: {record.topic}-{record.partition} at {record.offset}"
        case Removed():
            return f"- {record.kind} {' '.join(str(part) for part in record.identity[1:])}".rstrip()
    raise AssertionError(record)


def _refusal(error: RaystreamError) -> str:
    return f"! {type(error).__name__}: {error}"


def _given(held: tuple[Held, ...]) -> str:
    return " ".join(f"{topic}-{number}@{epoch}" for topic, number, epoch in held) or "nothing"


def _listed(owned: tuple[Partition, ...]) -> str:
    return " ".join(f"{topic}-{number}" for topic, number in owned) or "nothing"


def _partition(word: str) -> Partition:
    topic, _, number = word.rpartition("-")
    return topic, int(number)
