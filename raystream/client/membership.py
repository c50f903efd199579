"""A consumer's life in its group: heartbeats, what it is assigned, what it gives back (KIP-848).

Guarantees: heartbeats run on the loop, so a slow handler does not evict. A partition that is taken away leaves `owned`
only when none of its records is in the user's hands and its processed position is committed. Partitions that stay keep
flowing. A member that is fenced joins again; where nobody else has moved the group's position meanwhile, it goes on
where its user was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import uuid
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from raystream import messages as m
from raystream.client.assigned import Assigned
from raystream.client.buffer import Buffer
from raystream.client.routing import MAX_BACKOFF_MS, Routing
from raystream.client.subscription import Subscription
from raystream.config import ConsumerConfig
from raystream.errors import FencedMember, RaystreamError, UnknownMember
from raystream.types import TopicPartition

log = logging.getLogger("raystream")

JOIN_EPOCH: Final = 0
LEAVE_EPOCH: Final = -1
NOTICE_AFTER_MS: Final = 3_000.0
IDLE_HEARTBEAT_MS: Final = 250.0
"""A member that waits for others to let go asks more often."""
COMMIT_AGAIN_MS: Final = 50.0
LAST_COMMITS_S: Final = 2.0


class Holder(Protocol):
    """Who opens and closes partitions on behalf of the membership."""

    async def open(
        self, partitions: list[TopicPartition], committed: Mapping[TopicPartition, int]
    ) -> list[Assigned]: ...

    def admit(self, slot: Assigned) -> None: ...

    def drop(self, slot: Assigned) -> None: ...


class Membership:
    """One member of one group. Lives on the loop."""

    def __init__(
        self,
        routing: Routing,
        config: ConsumerConfig,
        buffer: Buffer,
        holder: Holder,
        *,
        group: str,
        subscription: Subscription,
        client: str,
        instance_id: str = "",
    ) -> None:
        self._routing = routing
        self._config = config
        self._buffer = buffer
        self._holder = holder
        self.group = group
        self._subscription = subscription
        self._client = client
        self._instance_id = instance_id
        self._succeeded: FencedMember | UnknownMember | None = None
        self.member_id = uuid.uuid4().hex
        self.epoch = JOIN_EPOCH
        self._sequence = itertools.count(1)
        self._owned: dict[TopicPartition, Assigned] = {}
        self._opening: dict[TopicPartition, asyncio.Task[None]] = {}
        self._closing: dict[TopicPartition, asyncio.Task[None]] = {}
        self._retained: dict[TopicPartition, Assigned] = {}
        self._left_open: set[TopicPartition] = set()
        """Lost or given back with records handed out and not committed: no transaction with what was made of them."""
        self._kick = asyncio.Event()
        self._idle_since: float | None = None
        self._noticed = False
        self._owners_wanted = False
        self._let_go: dict[TopicPartition, int] = {}
        """Positions of what is being given back, for one commit."""
        self._last_commits: dict[asyncio.Task[None], None] = {}

    # Heartbeats -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Beats until it is cancelled. An error that will not pass is the user's to see."""
        while True:
            try:
                reply = await self._beat(self.epoch)
            except (FencedMember, UnknownMember) as error:
                if _taken_over(error):  # a newer life has the partitions: this one is over
                    self._succeeded = error
                    self._buffer.fail(error)
                    self._fenced()
                    return
                log.info("joining group %r again: %s", self.group, error)
                self._fenced()
                await asyncio.sleep(COMMIT_AGAIN_MS / 1000)
                continue
            except RaystreamError as error:
                if not error.retriable:
                    self._buffer.fail(error)
                    return
                log.warning("group %r: no heartbeat got through: %s; trying again", self.group, error)
                await asyncio.sleep(MAX_BACKOFF_MS / 1000)
                continue
            self._apply(reply)
            with contextlib.suppress(TimeoutError):
                # not wait_for: where the event comes with the cancellation it forgets that (Python 3.11), and a member
                # that has left would join again
                async with asyncio.timeout(self._pause_ms(idle=not reply.assigned) / 1000):
                    await self._kick.wait()
            self._kick.clear()

    def _pause_ms(self, *, idle: bool) -> float:
        interval = float(self._config.heartbeat_interval_ms)
        return min(interval, IDLE_HEARTBEAT_MS) if idle else interval

    async def _beat(self, epoch: int) -> m.HeartbeatReply:
        self._owners_wanted = self._is_to_notice()
        owned = () if epoch in (JOIN_EPOCH, LEAVE_EPOCH) else (*self._owned, *self._opening)
        request = m.HeartbeatRequest(
            group=self.group,
            member_id=self.member_id,
            member_epoch=epoch,
            topics=self._subscription.topics,
            pattern=self._subscription.pattern,
            owned=tuple((p.topic, p.partition) for p in owned),
            client=self._client,
            session_timeout_ms=self._config.session_timeout_ms,
            rebalance_timeout_ms=self._config.rebalance_timeout_ms,
            sequence=next(self._sequence),
            assignor=self._config.assignor,
            instance_id=self._instance_id,
            node_id=self._routing.node_id or "",
            host=socket.gethostname(),
            pid=os.getpid(),
            asked_ms_ago=self._buffer.asked_ms_ago(),
            owners_wanted=self._owners_wanted,
        )
        return await self._routing.call_coordinator(
            lambda port, left_ms: port.heartbeat(request, timeout_ms=left_ms),
            timeout_ms=self._config.request_timeout_ms,
        )

    def _apply(self, reply: m.HeartbeatReply) -> None:
        self.epoch = reply.member_epoch
        wanted = {TopicPartition(topic, partition): epoch for topic, partition, epoch in reply.assigned}
        for partition in [p for p in self._opening if p not in wanted]:
            task = self._opening.pop(partition)
            if task not in self._opening.values():  # the others that it opens are wanted still
                task.cancel()
            self._kick.set()
        for partition, slot in self._owned.items():
            if partition not in wanted and partition not in self._closing:
                self._revoke(slot)
        fresh = sorted(p for p in wanted if p not in self._owned and p not in self._opening)
        if fresh:
            task = asyncio.ensure_future(self._open({partition: wanted[partition] for partition in fresh}))
            task.add_done_callback(self._ended)
            self._opening.update(dict.fromkeys(fresh, task))
        self._notice(reply)

    def _is_to_notice(self) -> bool:
        """Whether it is time to say who has the partitions: this member has had none for a while."""
        since = self._idle_since
        return not self._noticed and since is not None and self._routing.clock.monotonic_ms() - since >= NOTICE_AFTER_MS

    def _notice(self, reply: m.HeartbeatReply) -> None:
        """Says once who has the partitions, where the coordinator was asked for that."""
        if reply.assigned:
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = self._routing.clock.monotonic_ms()
        if not self._owners_wanted:
            return
        self._noticed = True
        held: dict[str, list[str]] = {}
        for client, topic, partition in reply.owners:
            held.setdefault(client, []).append(f"{topic}-{partition}")
        who = "; ".join(f"{client} has {', '.join(sorted(parts))}" for client, parts in sorted(held.items()))
        log.warning(
            "this consumer gets no partition of %s: in group %r %s. A partition goes to one member at a time",
            self._subscription,
            self.group,
            who or "nobody has any, so there is none to give",
        )

    # Partitions come and go -----------------------------------------------------------------------------------------

    async def _open(self, epochs: Mapping[TopicPartition, int]) -> None:
        while True:
            try:
                committed = await self.committed(list(epochs))
                slots = await self._holder.open(list(epochs), committed)
                break
            except RaystreamError as error:
                if not error.retriable:
                    self._buffer.fail(error)
                    return
                log.warning("group %r: cannot open %s yet: %s", self.group, next(iter(epochs)), error)
                await asyncio.sleep(MAX_BACKOFF_MS / 1000)
        for slot in slots:
            if self._opening.pop(slot.partition, None) is None:
                continue  # taken away again meanwhile
            slot.epoch = epochs[slot.partition]
            slot.committed = committed.get(slot.partition)
            self._resume_where_the_user_was(slot)
            self._owned[slot.partition] = slot
            self._holder.admit(slot)

    def _resume_where_the_user_was(self, slot: Assigned) -> None:
        before = self._retained.pop(slot.partition, None)
        if before is not None and before.committed == slot.committed and before.topic_id == slot.topic_id:
            slot.fetch_offset = slot.position = self._buffer.position(before)
            slot.processed = self._buffer.processed(before)

    def _revoke(self, slot: Assigned) -> None:
        self._buffer.revoke(slot)
        self._holder.drop(slot)
        task = asyncio.ensure_future(self._give_back(slot))
        task.add_done_callback(self._ended)
        self._closing[slot.partition] = task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("group %r: moving partitions failed", self.group, exc_info=error)
            self._buffer.fail(RaystreamError(f"group {self.group!r}: moving partitions failed: {error!r}"))

    async def _give_back(self, slot: Assigned) -> None:
        await slot.let_go.wait()
        if self._config.auto_commit:
            if not self._let_go:
                last = asyncio.ensure_future(self._commit_what_was_let_go())
                self._last_commits[last] = None
                last.add_done_callback(lambda task: self._last_commits.pop(task, None))
            self._let_go[slot.partition] = self._buffer.processed(slot)
            await asyncio.shield(next(reversed(self._last_commits)))
        self._forget(slot)
        self._kick.set()

    async def _commit_what_was_let_go(self) -> None:
        """What is let go in one moment, which may be hundreds of partitions, goes with one commit."""
        await asyncio.sleep(0)
        offsets, self._let_go = self._let_go, {}
        with contextlib.suppress(RaystreamError):  # fenced or out of time: the next owner reads them again
            await self.commit(offsets, timeout_ms=self._config.request_timeout_ms)

    def _forget(self, slot: Assigned) -> None:
        if self._buffer.processed(slot) != (slot.begin if slot.committed is None else slot.committed):
            self._left_open.add(slot.partition)
        self._buffer.remove(slot)
        self._owned.pop(slot.partition, None)
        self._closing.pop(slot.partition, None)

    def _fenced(self) -> None:
        """Others may have the partitions by now: nothing more of them is handed out, and this member starts over."""
        self.epoch = JOIN_EPOCH
        for task in dict.fromkeys((*self._opening.values(), *self._closing.values(), *self._last_commits)):
            task.cancel()
        self._opening.clear()
        self._last_commits.clear()
        self._let_go.clear()
        self._left_open.update(self._owned)
        for slot in list(self._owned.values()):
            self._buffer.revoke(slot)
            self._holder.drop(slot)
            self._forget(slot)
            self._retained[slot.partition] = slot

    @property
    def owned(self) -> dict[TopicPartition, Assigned]:
        return dict(self._owned)

    # Offsets --------------------------------------------------------------------------------------------------------

    async def committed(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """The group's committed offsets, all or those of some partitions."""
        wanted = None if partitions is None else tuple((p.topic, p.partition) for p in partitions)
        request = m.GroupRequest(group=self.group, partitions=wanted)
        found = await self._routing.call_coordinator(
            lambda port, left_ms: port.fetch_offsets(request, timeout_ms=left_ms),
            timeout_ms=self._config.request_timeout_ms,
        )
        return {TopicPartition(c.topic, c.partition): c.offset for c in found}

    async def commit(self, offsets: Mapping[TopicPartition, int], *, timeout_ms: float) -> None:
        """Commits positions. Where the member was fenced, waits until it has joined again and commits what it holds
        then; raises FencedMember where nothing of it is left, RequestTimeout when time runs out."""
        clock = self._routing.clock
        deadline = clock.monotonic_ms() + timeout_ms
        left = dict(offsets)
        while True:
            if self._succeeded is not None:
                raise self._succeeded
            left_ms = deadline - clock.monotonic_ms()
            held = {p: offset for p, offset in left.items() if p in self._owned}
            # A partition that came while another is on its way out counts from the epoch that ends that.
            due = {p: offset for p, offset in held.items() if self._owned[p].epoch <= self.epoch}
            try:
                if due:
                    await self._commit_once(due, left_ms)
            except (FencedMember, UnknownMember) as error:
                if left_ms <= 0 or _taken_over(error):
                    raise
            else:
                left = {p: offset for p, offset in held.items() if p not in due and offset != self._owned[p].begin}
                if held and not left:
                    return
            joining = self.epoch == JOIN_EPOCH or any(p in self._opening for p in offsets)
            if left_ms <= 0 or not (held or joining):
                raise FencedMember(
                    f"group {self.group!r} has given these partitions to another member: their records are read again"
                )
            self._kick.set()
            await asyncio.sleep(COMMIT_AGAIN_MS / 1000)

    async def _commit_once(self, held: Mapping[TopicPartition, int], timeout_ms: float) -> None:
        number = next(self._sequence)
        request = m.CommitRequest(
            group=self.group,
            member_id=self.member_id,
            member_epoch=self.epoch,
            offsets=tuple(m.CommittedOffset(p.topic, p.partition, offset) for p, offset in held.items()),
            sequence=number,
        )
        await self._routing.call_coordinator(
            lambda port, left_ms: port.commit(request, timeout_ms=left_ms), timeout_ms=max(timeout_ms, 1)
        )
        for partition, offset in held.items():
            if partition in self._owned:
                self._buffer.committed(self._owned[partition], offset, number)

    def commit_request(self, offsets: Mapping[TopicPartition, int]) -> m.CommitRequest:
        """A commit in this member's name, which somebody else sends. Raises FencedMember for what it does not hold."""
        lost = [partition for partition in offsets if partition not in self._owned] + sorted(self._left_open)
        self._left_open.clear()
        if lost or self.epoch == JOIN_EPOCH:
            raise FencedMember(f"group {self.group!r} has given {lost[0] if lost else 'these'} to another member")
        return m.CommitRequest(
            group=self.group,
            member_id=self.member_id,
            member_epoch=self.epoch,
            offsets=tuple(m.CommittedOffset(p.topic, p.partition, offset) for p, offset in offsets.items()),
        )

    def note_committed(self, request: m.CommitRequest) -> None:
        """Such a commit went through."""
        number = next(self._sequence)
        for position in request.offsets:
            slot = self._owned.get(TopicPartition(position.topic, position.partition))
            if slot is not None:
                self._buffer.committed(slot, position.offset, number)

    def rewound(self) -> None:
        """What was handed out and not committed has been taken back: it comes again, also of partitions that are lost
        or not open yet."""
        self._left_open.clear()
        self._retained.clear()

    async def leave(self, *, told: bool | None = None) -> None:
        """Tells the coordinator at once, so that the others need not wait for the session to run out. A static member
        does so only where it is `told` to: its next life is expected."""
        for task in self._opening.values():
            task.cancel()
        if self._closing:  # the user holds nothing any more, so these are about to commit
            await asyncio.wait(set(self._closing.values()), timeout=LAST_COMMITS_S)
        wanted = not self._instance_id if told is None else told
        if wanted and self.epoch != JOIN_EPOCH:
            with contextlib.suppress(RaystreamError):
                await self._beat(LEAVE_EPOCH)


def _taken_over(error: FencedMember | UnknownMember) -> bool:
    """Whether another life of the same static member has taken the place of this one."""
    return bool(getattr(error, "instance_id", ""))
