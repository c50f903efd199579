"""The thread that owns a broker's Raft node: takes messages and proposals, writes, sends, applies.

Guarantees
    What `propose` has returned for is committed, on a majority of the voters' disks, and applied here. What it raised
    NotLeader for will never be committed. After any other error nobody knows.
    Messages go out only once what they speak of is durable.
    After an error of the disk, or of a callback, the node does and says nothing more: `failed` is told, once, and the
    process must end.

Whatever is proposed while the disk is at work goes to the disk together, in the next write.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from raystream.actors.raft_disk import RaftDisk
from raystream.actors.writer import Ticket
from raystream.clock import Clock
from raystream.core.raft import Raft
from raystream.core.raft_messages import Entry, Message, RaftSettings, Ready, Snapshot, Status, Voter, Voters
from raystream.errors import ActorLost, DiskFull, NotLeader, RequestTimeout

logger = logging.getLogger("raystream.raft")

MAX_INBOX: Final = 1_000
SNAPSHOT_EVERY_ENTRIES: Final = 10_000
SNAPSHOT_EVERY_BYTES: Final = 32 << 20
KEEP_ENTRIES: Final = 500
"""So many entries before a snapshot stay, for followers that are a little behind."""
STOP_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class RaftNode:
    """Looks and calls are for any thread. Callbacks come one at a time, on the node's own thread, or in `start`.

    `send` must not block; what it raises counts as a lost message. `apply` gets the data of committed entries, in their
    order, each once after the snapshot that `restore` got last. `changed` comes after all that led to it is applied.
    """

    def __init__(
        self,
        disk: RaftDisk,
        *,
        clock: Clock,
        rng: random.Random,
        settings: RaftSettings | None = None,
        send: Callable[[Message], None],
        apply: Callable[[Sequence[bytes]], None],
        restore: Callable[[bytes], None],
        take_snapshot: Callable[[], bytes],
        changed: Callable[[Status], None],
        failed: Callable[[BaseException], None],
        snapshot_every_entries: int = SNAPSHOT_EVERY_ENTRIES,
        snapshot_every_bytes: int = SNAPSHOT_EVERY_BYTES,
        keep_entries: int = KEEP_ENTRIES,
    ) -> None:
        self._disk = disk
        self._clock = clock
        self._send = send
        self._apply = apply
        self._restore = restore
        self._take_snapshot = take_snapshot
        self._changed = changed
        self._failed = failed
        self._snapshot_every_entries = snapshot_every_entries
        self._snapshot_every_bytes = snapshot_every_bytes
        self._keep_entries = keep_entries
        self._entries_since = 0
        self._bytes_since = 0
        self._raft = Raft(
            disk.identity,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=disk.entries,
            rng=rng,
            now_ms=clock.monotonic_ms(),
            settings=settings,
        )
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._inbox: list[Message] = []
        self._waiting: dict[int, list[tuple[int, Ticket[None]]]] = {}
        """Who waits for what becomes of an index, each with the term of its proposal."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="raystream-raft", daemon=True)

    def start(self) -> None:
        """Gives the state machine its snapshot, and begins. A sole voter leads when it returns, and has applied its
        log. Raises what the disk and the callbacks raise."""
        _restore_from(self._disk.snapshot, self._restore)
        self._disk.forget_found()
        while self.voters == (self.identity,) and not self.status.ready_to_lead and self._work():
            pass
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and gives the directory back; whoever waits gets ActorLost."""
        self._end(ActorLost("the broker is stopping"))
        if not self._thread.is_alive():
            self._disk.close()
        elif threading.current_thread() is not self._thread:
            self._thread.join(STOP_TIMEOUT_S)

    # Looks ----------------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Voter:
        """The broker's id and its disk's."""
        return self._disk.identity

    @property
    def cluster_id(self) -> str:
        """The cluster that the disk belongs to."""
        return self._disk.cluster_id

    @property
    def status(self) -> Status:
        """Who leads, and whether it is this node and has applied all that was decided before."""
        with self._lock:
            raft = self._raft
            return Status(raft.role, raft.term, raft.leader, raft.ready_to_lead)

    @property
    def voters(self) -> Voters:
        """The voter set that counts, committed or not."""
        with self._lock:
            return self._raft.voters

    def followers(self) -> Voters:
        """Everybody that this leader sends its log to."""
        with self._lock:
            return self._raft.followers()

    def match_index(self, of: Voter) -> int | None:
        """Up to where another node's disk is known to hold the log; None where this node does not lead."""
        with self._lock:
            progress = self._raft.progress(of)
            return None if progress is None else progress.match_index

    @property
    def last_index(self) -> int:
        """The last entry's, committed or not."""
        with self._lock:
            return self._raft.log.last_index

    @property
    def applied_index(self) -> int:
        """Up to where the state machine here has got."""
        with self._lock:
            return self._raft.log.applied_index

    @property
    def lease_until_ms(self) -> float | None:
        """Until when nobody else can lead, on the monotonic clock; None where that is not certain."""
        with self._lock:
            return self._raft.lease_until_ms

    # Calls ----------------------------------------------------------------------------------------------------------

    def step(self, messages: Sequence[Message]) -> None:
        """Messages have arrived. Too many at once are dropped, which Raft takes for a bad network."""
        with self._wake:
            self._inbox += messages[: MAX_INBOX - len(self._inbox)]
            self._wake.notify()

    def propose(self, data: bytes, timeout_ms: float) -> int:
        """Appends an entry; its index, once it is committed and applied here.

        Raises NotLeader where it is certain that it never will be, RequestTimeout and ActorLost where nobody knows,
        Unavailable and Overloaded as the core does: it was not appended. Not for callbacks, which it would wait for.
        """
        return self._propose(lambda: self._raft.propose(data), timeout_ms)

    def propose_voters(self, voters: Voters, timeout_ms: float) -> int:
        """Another voter set, by one voter. Raises as `propose`, and InvalidArgument. See `Raft.propose_voters`."""
        return self._propose(lambda: self._raft.propose_voters(voters), timeout_ms)

    def observe(self, node: Voter) -> None:
        """The leader sends its log to a node that is no voter too. Raises NotLeader."""
        self._call(lambda: self._raft.observe(node))

    def forget(self, node: Voter) -> None:
        """The leader stops sending to an observer. Raises NotLeader, and InvalidArgument for a voter."""
        self._call(lambda: self._raft.forget(node))

    def transfer_leadership(self, to: int) -> None:
        """Begins to hand the lead to another voter. See `Raft.transfer_leadership`."""
        self._call(lambda: self._raft.transfer_leadership(to))

    def _propose(self, append: Callable[[], int], timeout_ms: float) -> int:
        waiter: Ticket[None] = Ticket(None)

        def begin() -> int:
            index = append()
            self._waiting.setdefault(index, []).append((self._raft.term, waiter))
            return index

        index = self._call(begin)
        try:
            waiter.wait(timeout_ms)
        except RequestTimeout:
            with self._lock:
                self._forget_waiter(index, waiter)
            raise _unknown(index) from None
        return index

    def _forget_waiter(self, index: int, waiter: Ticket[None]) -> None:
        left = [(term, other) for term, other in self._waiting.pop(index, []) if other is not waiter]
        if left:
            self._waiting[index] = left

    def _call(self, work: Callable[[], T]) -> T:
        with self._wake:
            if self._stopped:
                raise ActorLost("the broker is stopping")
            result = work()
            self._wake.notify()
            return result

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped:
                if not self._work():
                    self._sleep()
        except BaseException as error:
            self._end(ActorLost(f"the metadata log failed: {error}"))
            self._failed(error)
        finally:
            self._disk.close()

    def _sleep(self) -> None:
        with self._wake:
            if not (self._stopped or self._inbox or self._raft.has_ready):
                wait_ms = self._raft.deadline_ms - self._clock.monotonic_ms()
                self._wake.wait(max(wait_ms, 0.0) / 1000)

    def _work(self) -> bool:
        """Takes in what has come, and does what follows from it; False where nothing does. The lock is free while the
        disk is at work."""
        with self._lock:
            now_ms = self._clock.monotonic_ms()
            inbox, self._inbox = self._inbox, []
            for message in inbox:
                self._raft.step(message, now_ms)
            if now_ms >= self._raft.deadline_ms:
                self._raft.tick(now_ms)
            if self._stopped or not self._raft.has_ready:
                return False
            ready = self._raft.ready()
        if ready.must_sync:
            self._disk.write(ready)
        for message in ready.messages:
            self._send_or_lose(message)
        if ready.snapshot is not None:
            _restore_from(ready.snapshot, self._restore)
        data = [entry.data for entry in ready.committed if entry.data is not None]
        if data:
            self._apply(data)
        with self._lock:
            self._raft.advance()
            self._settle(ready)
        if ready.status is not None:
            self._changed(ready.status)
        self._maybe_compact(ready.committed)
        return True

    def _send_or_lose(self, message: Message) -> None:
        try:
            self._send(message)
        except Exception:
            logger.warning("a message to broker %d was not sent", message.to.id, exc_info=True)

    def _settle(self, ready: Ready) -> None:
        """Answers those whose entries' fate is known: of each index one entry is committed, and no other ever."""
        if ready.snapshot is not None:  # what is in it may be what they proposed, or not
            for index in [index for index in self._waiting if index <= ready.snapshot.index]:
                for _, waiter in self._waiting.pop(index):
                    waiter.fail(_unknown(index))
        if not self._waiting:
            return
        for entry in ready.committed:
            for term, waiter in self._waiting.pop(entry.index, ()):
                if entry.term == term:
                    waiter.answer(None)
                else:
                    waiter.fail(NotLeader("another broker leads the metadata log now: the change was not made"))

    def _maybe_compact(self, committed: Sequence[Entry]) -> None:
        """A snapshot now and then. A full disk is no error here: the log stays as it is, and it is tried again."""
        self._entries_since += len(committed)
        self._bytes_since += sum(entry.size_bytes for entry in committed)
        if self._entries_since < self._snapshot_every_entries and self._bytes_since < self._snapshot_every_bytes:
            return
        self._entries_since = self._bytes_since = 0
        data = self._take_snapshot()
        with self._lock:
            log = self._raft.log
            snapshot = self._raft.compact(log.applied_index, data, keep_entries=self._keep_entries)
            keep_from_index = log.base_index + 1
        try:
            self._disk.compacted(snapshot, keep_from_index)
        except DiskFull as error:
            logger.warning("the metadata log cannot be compacted: %s", error)

    def _end(self, error: Exception) -> None:
        with self._wake:
            self._stopped = True
            waiting, self._waiting = self._waiting, {}
            self._wake.notify_all()
        for waiters in waiting.values():
            for _, waiter in waiters:
                waiter.fail(error)


def _restore_from(snapshot: Snapshot, restore: Callable[[bytes], None]) -> None:
    """Nothing and a new cluster's first snapshot without data stand for the state that a state machine begins in."""
    if snapshot.data or snapshot.index > 1:
        restore(snapshot.data)


def _unknown(index: int) -> RequestTimeout:
    return RequestTimeout(f"whether entry {index} of the metadata log is committed is not known (yet)")
