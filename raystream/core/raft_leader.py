"""What a leader knows and does in its term: replicates, commits, counts its lease, changes voters, hands over.

A `Leadership` is made when the election is won and thrown away when the term ends, and everything in it with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from raystream.core import quorum
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    InstallSnapshot,
    Message,
    RaftSettings,
    TimeoutNow,
    Voter,
    Voters,
)
from raystream.core.raft_progress import Progress
from raystream.errors import InvalidArgument, Overloaded, Unavailable


class Leadership:
    """Puts messages into `outbox`; the log is shared with the `Raft` that owns both."""

    def __init__(
        self, identity: Voter, term: int, log: RaftLog, settings: RaftSettings, outbox: list[Message], now_ms: float
    ) -> None:
        self._identity = identity
        self._term = term
        self._log = log
        self._settings = settings
        self._outbox = outbox
        self._now_ms = now_ms
        self._since_ms = now_ms
        self._next_heartbeat_ms = now_ms
        self._progress: dict[Voter, Progress] = {}
        self._transfer_to: Voter | None = None
        self._transfer_deadline_ms = math.inf
        self._lease_given_up = False
        for voter in log.voters:
            self._track(voter)
        self._uncommitted_bytes = log.size_bytes(log.commit_index + 1, log.last_index + 1)
        self.term_start_index = self._append(Entry(log.last_index + 1, term))
        """The index of this term's first entry. Once it is committed, so is all that stood before it."""
        self.heartbeat(now_ms)

    # Time -----------------------------------------------------------------------------------------------------------

    @property
    def next_heartbeat_ms(self) -> float:
        """When `heartbeat` is due."""
        return self._next_heartbeat_ms

    def heartbeat(self, now_ms: float) -> None:
        """Sends every follower something to answer, and ends a transfer that came to nothing."""
        self._now_ms = now_ms
        self._next_heartbeat_ms = now_ms + self._settings.heartbeat_interval_ms
        if now_ms >= self._transfer_deadline_ms:
            self._transfer_to, self._transfer_deadline_ms = None, math.inf
        for progress in self._progress.values():
            self._send(progress, heartbeat=True)

    def has_lost_quorum(self, now_ms: float) -> bool:
        """Whether no majority has answered what was sent within the last election timeout."""
        return now_ms - max(self._answered_ms(now_ms), self._since_ms) >= self._settings.election_timeout_ms

    def lease_until_ms(self, now_ms: float) -> float | None:
        """Until when, by this node's clock, nobody else can have been elected; None where that cannot be known.

        Counted from the sending of the latest heartbeat that a majority has answered: each of them votes for nobody
        else for an election timeout after it came. A follower that was asked to stand for election overrides that, so
        the lease is given up for the rest of the term once it was.
        """
        answered_ms = self._answered_ms(now_ms)
        if self._lease_given_up or answered_ms == -math.inf:
            return None
        return answered_ms + self._settings.lease_ms

    def _answered_ms(self, now_ms: float) -> float:
        return quorum.reached(
            now_ms if voter == self._identity else self._progress[voter].answered_ms for voter in self._log.voters
        )

    # Entries --------------------------------------------------------------------------------------------------------

    @property
    def has_committed(self) -> bool:
        """Whether an entry of this term is committed."""
        return self._log.commit_index >= self.term_start_index

    def propose(self, data: bytes) -> int:
        """Appends and sends an entry; its index. Raises Unavailable during a transfer, Overloaded at the bound."""
        self._check_may_append()
        entry = Entry(self._log.last_index + 1, self._term, data=data)
        waiting = self._uncommitted_bytes
        if waiting and waiting + entry.size_bytes > self._settings.max_uncommitted_bytes:
            raise Overloaded(f"{waiting:,} bytes wait to be committed to the metadata log: try again later")
        index = self._append(entry)
        self._replicate()
        return index

    def propose_voters(self, voters: Iterable[Voter]) -> int:
        """Appends a voter set, which counts at once. See `Raft.propose_voters`."""
        self._check_may_append()
        self._check_may_change_voters()
        after = tuple(sorted(voters))
        quorum.check_change(self._log.voters, after)
        index = self._append(Entry(self._log.last_index + 1, self._term, voters=after))
        for voter in after:
            self._track(voter)
        self._replicate()
        return index

    def _check_may_append(self) -> None:
        if self._transfer_to is not None:
            raise Unavailable(f"the lead of the metadata log is being handed to broker {self._transfer_to.id}")

    def _check_may_change_voters(self) -> None:
        if self._log.voters_index > self._log.commit_index:
            raise Unavailable("the last change of voters is not committed yet")
        if not self.has_committed:
            raise Unavailable("the new leader of the metadata log has not committed an entry of its own yet")

    def _append(self, entry: Entry) -> int:
        self._log.append(entry)
        self._uncommitted_bytes += entry.size_bytes
        return entry.index

    def advance_commit(self) -> bool:
        """Commits what a majority holds durably; says whether that was news, which followers are then told.

        Only an entry of this term is counted: one of an earlier term may be on a majority and yet be cut off by a
        leader who lacks it (Raft paper, 5.4.2). It is committed with the entries that follow it.
        """
        before = self._log.commit_index
        index = int(quorum.reached(self._holds(voter) for voter in self._log.voters))
        if index <= before or self._log.term_at(index) != self._term:
            return False
        self._log.commit_to(index)
        self._uncommitted_bytes -= self._log.size_bytes(before + 1, index + 1)
        for progress in self._progress.values():
            self._send(progress, heartbeat=progress.mode == "replicate")
        return True

    def _holds(self, voter: Voter) -> int:
        return self._log.durable_index if voter == self._identity else self._progress[voter].match_index

    @property
    def is_removed(self) -> bool:
        """Whether this leader is no voter any more, and that is committed: its work is done."""
        return self._identity not in self._log.voters and self._log.voters_index <= self._log.commit_index

    # Followers ------------------------------------------------------------------------------------------------------

    def _track(self, voter: Voter) -> None:
        if voter != self._identity and voter not in self._progress:
            self._progress[voter] = Progress(voter, self._log.last_index + 1)

    def observe(self, observer: Voter) -> None:
        """Sends the log to a node that is no voter as well."""
        if observer != self._identity and observer not in self._progress:
            self._track(observer)
            self._send(self._progress[observer], heartbeat=True)

    def forget(self, observer: Voter) -> None:
        """Stops that. Raises InvalidArgument for a voter."""
        if observer in self._log.voters:
            raise InvalidArgument(f"{observer} is a voter: remove it from the voters first")
        self._progress.pop(observer, None)

    def progress(self, of: Voter) -> Progress | None:
        """How far a follower or observer is."""
        return self._progress.get(of)

    def followers(self) -> Voters:
        """Everybody whom the log is sent to."""
        return tuple(sorted(self._progress))

    def on_reply(self, reply: AppendEntriesReply, now_ms: float) -> None:
        """A follower's answer in this term."""
        self._now_ms = now_ms
        progress = self._progress.get(reply.source)
        if progress is None:
            return
        progress.answered_ms = max(progress.answered_ms, reply.sent_ms)
        if reply.success:
            progress.accepted(reply.match_index)
            self.advance_commit()
            self._send(progress)
            self._hand_over_if_complete()
        elif progress.refused(reply, self._log):
            self._send(progress)

    def _replicate(self) -> None:
        for progress in self._progress.values():
            self._send(progress)

    def _send(self, progress: Progress, *, heartbeat: bool = False) -> None:
        """Sends what the follower may be sent now; as a heartbeat at least something that it must answer."""
        if progress.mode != "snapshot" and self._log.term_at(progress.next_index - 1) is None:
            self._send_snapshot(progress)
        elif progress.mode == "snapshot":
            timeout_ms = self._settings.election_timeout_ms
            if heartbeat and self._now_ms - progress.snapshot_sent_ms >= timeout_ms:
                self._send_snapshot(progress)
            elif heartbeat:
                self._send_append(progress, 0, ())
        elif progress.mode == "probe":
            if heartbeat or not progress.probe_sent:
                self._send_batch(progress)
        else:
            first = progress.next_index
            while first <= self._log.last_index and len(progress.in_flight) < self._settings.max_appends_in_flight:
                first = self._send_batch(progress)
                heartbeat = False
            if heartbeat:
                self._send_append(progress, progress.next_index - 1, ())

    def _send_batch(self, progress: Progress) -> int:
        entries = self._log.batch(progress.next_index, self._settings.max_append_bytes)
        self._send_append(progress, progress.next_index - 1, entries)
        progress.sent(progress.next_index - 1 + len(entries))
        return progress.next_index

    def _send_append(self, progress: Progress, previous_index: int, entries: tuple[Entry, ...]) -> None:
        # A follower on a snapshot is asked about index 0, where all logs agree, of which the term is 0 by definition.
        previous_term = self._log.term_at(previous_index) if previous_index else 0
        assert previous_term is not None
        self._outbox.append(
            AppendEntries(
                source=self._identity,
                to=progress.voter,
                term=self._term,
                previous_index=previous_index,
                previous_term=previous_term,
                entries=entries,
                commit_index=self._log.commit_index,
                sent_ms=self._now_ms,
            )
        )

    def _send_snapshot(self, progress: Progress) -> None:
        snapshot = self._log.snapshot
        progress.sent_snapshot(snapshot.index, self._now_ms)
        self._outbox.append(
            InstallSnapshot(
                source=self._identity, to=progress.voter, term=self._term, snapshot=snapshot, sent_ms=self._now_ms
            )
        )

    # Handing over ---------------------------------------------------------------------------------------------------

    def transfer(self, to: int) -> None:
        """Hands the lead to a voter once its log is complete. See `Raft.transfer_leadership`."""
        target = next((voter for voter in self._log.voters if voter.id == to), None)
        if target is None or target == self._identity:
            raise InvalidArgument(f"broker {to} is not another voter of the metadata log")
        self._check_may_append()
        self._transfer_to = target
        self._transfer_deadline_ms = self._now_ms + self._settings.election_timeout_ms
        self._hand_over_if_complete()

    def _hand_over_if_complete(self) -> None:
        target = self._transfer_to
        if target is None or self._progress[target].match_index < self._log.last_index:
            return
        self._lease_given_up = True
        self._outbox.append(TimeoutNow(source=self._identity, to=target, term=self._term))
