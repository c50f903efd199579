"""One consumer group as replaying its records gives it, and beside that what is soft: who was heard when, who should
have what. A restart counts every member as heard just now and works out the rest anew from what members hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystream import messages as m
from raystream.core.assignors import Partition
from raystream.core.group_records import GroupRecord, MemberRecord, OffsetRecord

Target = Mapping[str, frozenset[Partition]]
Owners = tuple[tuple[str, str, int], ...]


@dataclass(slots=True)
class Presence:
    """What is soft about a member. `beat` and `commits` number the requests heard last, so that one which was
    overtaken on its way is told apart; `revoking_ms` says since when it is to give up what,
    `asked_ms` when its user last asked for records (None: it does not say)."""

    heard_ms: float
    revoking_ms: dict[Partition, float] = field(default_factory=dict)
    beat: int = 0
    commits: dict[Partition, int] = field(default_factory=dict)
    asked_ms: float | None = None

    def overtook(self, sequence: int) -> bool:
        """Whether a later heartbeat was heard already. Those numbered 0 are not counted."""
        return 0 < sequence < self.beat

    def hear(self, request: m.HeartbeatRequest, now_ms: float) -> None:
        """The member gave a sign of life."""
        self.heard_ms = now_ms
        self.beat = max(self.beat, request.sequence)
        self.asked_ms = now_ms - request.asked_ms_ago if request.asked_ms_ago >= 0 else None

    def note_commit(self, partition: Partition, sequence: int) -> bool:
        """False where a later commit of the partition was heard already."""
        last = self.commits.get(partition, 0)
        if 0 < sequence < last:
            return False
        self.commits[partition] = max(last, sequence)
        return True

    def due_ms(self, member: MemberRecord) -> float:
        """When the member is removed unless it is heard, and gives up what it is to give up."""
        due = self.heard_ms + member.session_timeout_ms
        if self.revoking_ms:
            due = min(due, min(self.revoking_ms.values()) + member.rebalance_timeout_ms)
        return due


@dataclass(slots=True)
class Plan:
    """Who should have what from group epoch `epoch` on.

    `topics` is the mapping of partition counts that it was last compared with, `counts` the part that is subscribed,
    `steady` what to answer members that hold exactly what they should.
    """

    epoch: int
    topics: Mapping[str, int]
    counts: dict[str, int]
    target: Target
    steady: dict[str, m.HeartbeatReply] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """One group. The first fields are what replay gives, the others soft."""

    name: str
    epoch: int = 0
    members: dict[str, MemberRecord] = field(default_factory=dict)
    offsets: dict[Partition, OffsetRecord] = field(default_factory=dict)
    holder: dict[Partition, str] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    empty_since_ms: int = 0

    plan: Plan | None = None
    presence: dict[str, Presence] = field(default_factory=dict)
    owners: Owners | None = None

    @property
    def exists(self) -> bool:
        """A group without members and positions is one that nobody can tell from none."""
        return bool(self.members or self.offsets)

    def record(self) -> GroupRecord:
        return GroupRecord(self.name, self.epoch, self.empty_since_ms)

    def put_member(self, record: MemberRecord, now_ms: float) -> None:
        """Replay: a member joined or changed."""
        self._release(record.member_id)
        self._unseat(record.member_id)
        self.members[record.member_id] = record
        if record.instance_id:
            self.instances[record.instance_id] = record.member_id
        for topic, number, _ in record.holds:
            self.holder[topic, number] = record.member_id
        presence = self.presence.get(record.member_id)
        if presence is None:
            presence = self.presence[record.member_id] = Presence(now_ms)
        since = presence.revoking_ms
        presence.revoking_ms = {held[:2]: since.get(held[:2], now_ms) for held in record.revoking}

    def drop_member(self, member_id: str) -> None:
        """Replay: a member is gone, and what it held is free."""
        self._release(member_id)
        self._unseat(member_id)
        self.members.pop(member_id, None)
        self.presence.pop(member_id, None)

    def _unseat(self, member_id: str) -> None:
        member = self.members.get(member_id)
        if member is not None and self.instances.get(member.instance_id) == member_id:
            del self.instances[member.instance_id]

    def seated(self, member: MemberRecord) -> MemberRecord | None:
        """The life of the same static member that `member` is to take the place of."""
        now = self.instances.get(member.instance_id) if member.instance_id else None
        return None if now is None or now == member.member_id else self.members[now]

    def successor(self, member_id: str) -> MemberRecord | None:
        """The static member's life that took the place of `member_id`."""
        lives = (self.members[now] for now in self.instances.values())
        return next((member for member in lives if member_id in member.former), None)

    def _release(self, member_id: str) -> None:
        self.owners = None
        if self.plan is not None:
            self.plan.steady.pop(member_id, None)
        former = self.members.get(member_id)
        for topic, number, _ in former.holds if former is not None else ():
            if self.holder.get((topic, number)) == member_id:
                del self.holder[topic, number]

    def owner_list(self) -> Owners:
        """Who holds what, as (client, topic, partition)."""
        if self.owners is None:
            self.owners = tuple(
                (self.members[member_id].client, topic, number)
                for (topic, number), member_id in sorted(self.holder.items())
            )
        return self.owners

    def state(self) -> str:
        """ "empty", "stable" where everybody holds what they should, else "reconciling"."""
        if not self.members:
            return "empty"
        settled = (
            self.plan is not None
            and self.plan.epoch == self.epoch
            and holds_exactly(self.members, self.plan.target)
            and all(member.epoch == self.epoch for member in self.members.values())
        )
        return "stable" if settled else "reconciling"


def holds_exactly(members: Mapping[str, MemberRecord], target: Target) -> bool:
    """Whether each member holds what the target says, and nobody holds on to more."""
    return all(
        not member.revoking and {held[:2] for held in member.assigned} == target.get(member_id, frozenset())
        for member_id, member in members.items()
    )
