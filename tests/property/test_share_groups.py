"""Share groups under random acquisitions, acknowledgements, lost replies, late calls, deaths, timeouts, retention and
restarts of the coordinator, against a plain model of every record.

Each record is accepted once, or delivered again, or dead-lettered, or lost to retention and counted so: it is never
forgotten. No record is two members' at a time within one coordinator's life, what is settled is never delivered again,
and how often a record was delivered only grows. The log replayed, and the snapshot replayed, give the same state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raystream import messages as m
from raystream.core.records import Decision, Record, Removed, from_pair, to_pair
from raystream.core.share_groups import ShareGroups
from raystream.errors import UnknownMember

GROUP = "workers"
TOPIC = "t"
PARTITIONS = 2
SESSION_MS = 1000
LOCK_MS = 400
MAX_IN_FLIGHT = 12
MEMBERS = st.sampled_from(["a", "b", "c"])
PARTITION = st.sampled_from(range(PARTITIONS))
OPEN, ACCEPTED, ARCHIVED, BURIED, LOST = "open", "accepted", "archived", "buried", "lost"


@dataclass
class Row:
    """One record as the model has it."""

    state: str = OPEN
    holder: str | None = None
    until_ms: float = 0.0
    deliveries: int = 0
    dying: bool = False


@dataclass
class Client:
    sequence: int = 0
    received: int = 0
    acknowledged: int = 0
    hands: list[m.ShareRange] = field(default_factory=list)
    asked: m.ShareAcquireRequest | None = None
    joined: bool = False


class ShareMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shares = ShareGroups()
        self.log: list[Record | Removed] = []
        self.clients: dict[str, Client] = {}
        self.rows: list[list[Row]] = [[] for _ in range(PARTITIONS)]
        self.starts = [0] * PARTITIONS
        self.late: list[m.ShareAcknowledgeRequest] = []
        self.topics = {TOPIC: PARTITIONS}
        self.now_ms = 0.0
        self.dead_letter = ""
        self.max_deliveries = 3

    @initialize(dead_letter=st.sampled_from(["", "dead"]), max_deliveries=st.integers(1, 3))
    def begin(self, dead_letter: str, max_deliveries: int) -> None:
        self.dead_letter, self.max_deliveries = dead_letter, max_deliveries
        self._done(self.shares.know_topics({TOPIC: "id"}))

    def _done(self, decision: Decision) -> Any:
        for record in decision.records:
            self.shares.replay(record)
        self.log += decision.records
        partitions = [r.partition for r in decision.records if hasattr(r, "partition")]
        assert len(partitions) == len(set(partitions)), "a decision writes each partition once"
        return decision.reply

    def _know(self, partition: int) -> None:
        self._done(self.shares.know_end(TOPIC, "id", partition, len(self.rows[partition]), self.starts[partition]))
        for row in self.rows[partition][: self.starts[partition]]:
            if row.state == OPEN and self._opened():
                row.state, row.holder = LOST, None

    def _opened(self) -> bool:
        return GROUP in self.shares

    def _client(self, member: str) -> Client | None:
        client = self.clients.get(member)
        return client if client is not None and client.joined else None

    def _held(self, offer: m.ShareRange) -> list[Row]:
        return self.rows[offer[1]][offer[2] : offer[3]]

    def _delivery_ended(self, row: Row) -> None:
        row.holder = None
        if row.dying:
            return
        row.deliveries += 1
        if row.deliveries >= self.max_deliveries:
            self._give_up(row)

    def _give_up(self, row: Row) -> None:
        if self.dead_letter:
            row.dying = True
        else:
            row.state = ARCHIVED

    def _forget(self, member: str) -> None:
        for row in (row for rows in self.rows for row in rows):
            if row.holder == member:
                self._delivery_ended(row)

    # What members do ------------------------------------------------------------------------------------------------

    @rule(member=MEMBERS)
    def join(self, member: str) -> None:
        client = self.clients.setdefault(member, Client())
        client.sequence += 1
        request = m.ShareHeartbeatRequest(
            group=GROUP,
            member_id=member,
            intent=m.JOIN,
            topics=(TOPIC,),
            max_deliveries=self.max_deliveries,
            lock_timeout_ms=LOCK_MS,
            max_in_flight=MAX_IN_FLIGHT,
            dead_letter=self.dead_letter,
            session_timeout_ms=SESSION_MS,
            sequence=client.sequence,
        )
        self._done(self.shares.heartbeat(request, self.topics, self.now_ms))
        self._forget(member)
        again = self.shares.heartbeat(request, self.topics, self.now_ms)
        assert again.records == (), "a repeated join changes nothing"
        self.clients[member] = dataclasses.replace(client, hands=[], asked=None, joined=True, acknowledged=0)
        for partition in range(PARTITIONS):
            self._know(partition)

    @rule(member=MEMBERS)
    def beat(self, member: str) -> None:
        client = self._client(member)
        if client is not None:
            client.sequence += 1
            request = m.ShareHeartbeatRequest(group=GROUP, member_id=member, sequence=client.sequence)
            self._called(member, lambda: self.shares.heartbeat(request, self.topics, self.now_ms))

    def _called(self, member: str, call: Any) -> Any:
        try:
            return self._done(call())
        except UnknownMember:
            client = self.clients[member]
            client.joined = False
            client.hands.clear()
            client.asked = None
            return None

    @rule(member=MEMBERS)
    def leave(self, member: str) -> None:
        request = m.ShareHeartbeatRequest(group=GROUP, member_id=member, intent=m.LEAVE)
        self._done(self.shares.heartbeat(request, self.topics, self.now_ms))
        self._forget(member)
        self.clients.pop(member, None)
        self.late = [ack for ack in self.late if ack.member_id != member]

    @rule(partition=PARTITION, count=st.integers(1, 9))
    def produce(self, partition: int, count: int) -> None:
        self.rows[partition] += [Row() for _ in range(count)]
        self._know(partition)

    @rule(member=MEMBERS, most=st.integers(1, 10), lose_reply=st.booleans())
    def acquire(self, member: str, most: int, lose_reply: bool) -> None:
        client = self._client(member)
        if client is None:
            return
        client.sequence += 1
        request = m.ShareAcquireRequest(
            group=GROUP, member_id=member, max_records=most, sequence=client.sequence, received=client.received
        )
        for row in (row for rows in self.rows for row in rows):
            if row.holder == member and row.until_ms < 0:
                row.holder = None  # of an acquisition whose reply was lost: this one says so
        self._acquired(client, member, request, lose_reply)

    def _acquired(self, client: Client, member: str, request: m.ShareAcquireRequest, lose_reply: bool) -> None:
        found = self._called(member, lambda: self.shares.acquire(request, self.now_ms))
        if found is None:
            return
        assert bool(found.watch) <= (not found.reply.ranges)
        assert sum(r[3] - r[2] for r in found.reply.ranges) <= request.max_records
        for offer in found.reply.ranges:
            for row in self._held(offer):
                assert row.state == OPEN, "what is settled is not delivered again"
                assert row.holder is None, "nobody else has it"
                assert bool(offer[5]) == row.dying
                assert offer[4] == row.deliveries + (not row.dying)
                row.holder, row.until_ms = member, self.now_ms + LOCK_MS
        client.asked = request
        if lose_reply:
            for offer in found.reply.ranges:
                for row in self._held(offer):
                    row.until_ms = -1.0
        else:
            client.received = request.sequence
            client.hands += found.reply.ranges

    @rule(member=MEMBERS)
    def acquire_again(self, member: str) -> None:
        """The reply was lost, and the same call goes out once more: it gives the same."""
        client = self._client(member)
        if client is None or client.asked is None or client.received >= client.asked.sequence:
            return
        mine = {
            (p, o)
            for p, rows in enumerate(self.rows)
            for o, r in enumerate(rows)
            if r.holder == member and r.until_ms < 0
        }
        request = client.asked
        for partition, offset in mine:
            self.rows[partition][offset].holder = None
        self._acquired(client, member, request, lose_reply=False)
        if client.joined and mine:
            assert {(r[1], o) for r in client.hands for o in range(r[2], r[3])} >= mine

    KINDS = st.sampled_from([m.ACCEPT, m.ACCEPT, m.RELEASE, m.REJECT, m.RETURN, m.RENEW, m.GAP, m.BURIED])

    @rule(member=MEMBERS, kind=KINDS, data=st.data(), late=st.booleans())
    def acknowledge(self, member: str, kind: str, data: st.DataObject, late: bool) -> None:
        client = self._client(member)
        if client is None or not client.hands:
            return
        topic, partition, first, stop, _, reason = client.hands[data.draw(st.integers(0, len(client.hands) - 1))]
        if reason:
            kind = m.BURIED if kind != m.RETURN else kind
        begin = data.draw(st.integers(first, stop - 1))
        end = data.draw(st.integers(begin + 1, stop))
        client.acknowledged += 1
        request = m.ShareAcknowledgeRequest(
            group=GROUP,
            member_id=member,
            ranges=((topic, partition, begin, end, kind, 0),),
            sequence=client.acknowledged,
        )
        if late:
            self.late.append(request)
        else:
            self._acknowledged(request)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def something_late_arrives(self, data: st.DataObject) -> None:
        request = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        if self._client(request.member_id) is not None:
            self._acknowledged(request)

    def _acknowledged(self, request: m.ShareAcknowledgeRequest) -> None:
        reply = self._called(request.member_id, lambda: self.shares.acknowledge(request, self.now_ms))
        if reply is None:
            return
        assert self._done(self.shares.acknowledge(request, self.now_ms)) in (
            reply,
            m.ShareAcknowledgeReply(refused=(request.ranges[0][:4],)),
        ), "a repeated acknowledgement is answered as the first, or is overtaken"
        ((_, partition, first, stop, kind, _),) = request.ranges
        refused = {offset for _, _, begin, end in reply.refused for offset in range(begin, end)}
        for offset in range(first, stop):
            row = self.rows[partition][offset]
            if offset in refused:
                continue
            assert row.holder == request.member_id, "only who has a record may say what becomes of it"
            assert row.state == OPEN, "a record is settled once"
            self._become(row, kind)

    def _become(self, row: Row, kind: str) -> None:
        if kind == m.RENEW:
            row.until_ms = self.now_ms + LOCK_MS if row.until_ms >= 0 else row.until_ms
            return
        row.holder, holder = None, row.holder
        if kind in (m.ACCEPT, m.GAP):
            assert not row.dying
            row.state = ACCEPTED
        elif kind == m.BURIED:
            assert row.dying, "a record is not archived as dead-lettered before it is dying"
            row.state = BURIED
        elif kind == m.REJECT:
            row.deliveries += 1
            self._give_up(row)
        elif kind == m.RELEASE:
            row.holder = holder
            self._delivery_ended(row)

    # What befalls them ----------------------------------------------------------------------------------------------

    @rule(passed_ms=st.integers(1, 600))
    def time_passes(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        group = self.shares._groups.get(GROUP)
        dead = {name for name, member in group.members.items() if member.due_ms <= self.now_ms} if group else set()
        run_out = [
            row
            for number, rows in enumerate(self.rows)
            for offset, row in enumerate(rows)
            if row.holder and (row.holder in dead or self._deadline(number, offset) <= self.now_ms)
        ]
        self._done(self.shares.expire(self.now_ms))
        for row in run_out:
            self._delivery_ended(row)
        first = self.shares.next_expiry_ms()
        assert first is None or first > self.now_ms

    def _deadline(self, partition: int, offset: int) -> float:
        share = self.shares._groups[GROUP].partitions[TOPIC, partition]
        ((_, _, lock),) = share.locks.between(offset, offset + 1)
        assert lock is not None, "who has a record has its lock"
        return lock.deadline_ms

    @rule(partition=PARTITION, count=st.integers(1, 4))
    def retention(self, partition: int, count: int) -> None:
        self.starts[partition] = min(self.starts[partition] + count, len(self.rows[partition]))
        self._know(partition)

    @rule()
    def restart_the_coordinator(self) -> None:
        self.shares = self._replayed(self.log)
        self._done(self.shares.know_topics({TOPIC: "id"}))
        for row in (row for rows in self.rows for row in rows):
            row.holder = None
        for client in self.clients.values():
            client.joined = False
        self.late.clear()

    @staticmethod
    def _replayed(log: Iterable[Record | Removed]) -> ShareGroups:
        again = ShareGroups()
        for record in log:
            again.replay(from_pair(*to_pair(record)))
        return again

    # What holds always ----------------------------------------------------------------------------------------------

    @invariant()
    def every_record_is_settled_held_or_to_be_had(self) -> None:
        group = self.shares._groups.get(GROUP)
        for number, rows in enumerate(self.rows if group else []):
            assert group is not None
            share = group.partitions[TOPIC, number]
            offered = {o for offer in share.offers(len(rows), 10_000) for o in range(offer.first, offer.stop)}
            for offset, row in enumerate(rows):
                free = row.state == OPEN and row.holder is None
                assert (offset in offered) == free, f"{number}-{offset}: {row}"
            settled = [row.state for row in rows[: share.record.start_offset]]
            assert OPEN not in settled
            assert share.record.start_offset == len(rows) or rows[share.record.start_offset].state == OPEN
            assert max(share.runs.stop, share.locks.stop) <= share.record.start_offset + MAX_IN_FLIGHT or any(
                self.starts
            )

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        group = self.shares._groups.get(GROUP)
        for number, rows in enumerate(self.rows if group else []):
            assert group is not None
            record = group.partitions[TOPIC, number].record
            assert record.archived == sum(row.state == ARCHIVED for row in rows)
            assert record.dead_lettered == sum(row.state == BURIED for row in rows)
            assert record.lost == sum(row.state == LOST for row in rows)

    @invariant()
    def replay_gives_the_same_state(self) -> None:
        for log in (self.log, list(self.shares.snapshot())):
            again = self._replayed(log)
            assert list(again.snapshot()) == list(self.shares.snapshot())

    def teardown(self) -> None:
        """Somebody who accepts everything comes to the end of it."""
        self.now_ms += 10 * SESSION_MS
        self._done(self.shares.expire(self.now_ms))
        for row in (row for rows in self.rows for row in rows):
            if row.holder is not None:
                self._delivery_ended(row)
        self.clients.clear()
        self.join("z")
        for _ in range(200):
            client = self.clients["z"]
            client.hands.clear()
            self.acquire("z", 10, False)
            if not client.hands:
                break
            for topic, partition, first, stop, _, reason in client.hands:
                client.acknowledged += 1
                kind = m.BURIED if reason else m.ACCEPT
                self._acknowledged(
                    m.ShareAcknowledgeRequest(
                        group=GROUP,
                        member_id="z",
                        ranges=((topic, partition, first, stop, kind, 0),),
                        sequence=client.acknowledged,
                    )
                )
        assert [row for rows in self.rows for row in rows if row.state == OPEN] == []
        infos = self.shares.describe(GROUP, self.now_ms).shares
        assert [info.start_offset for info in infos] == [len(rows) for rows in self.rows]


TestShareGroups = ShareMachine.TestCase
TestShareGroups.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
