"""What goes into the Raft core and what comes out of it: voters, entries, snapshots, messages, and `Ready`.

All of these are frozen and hold plain values or each other, so that they travel and are written down field by field.
Names are those of the Raft paper and of Ongaro's thesis; directory ids are those of KIP-853. Clock readings in messages
are the sender's own, are only ever handed back to it, and mean nothing to anybody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["follower", "pre-candidate", "candidate", "leader"]

ENTRY_OVERHEAD_BYTES: Final = 32
"""What an entry counts beside its data where bytes are bounded, so that many empty ones are bounded too."""


@dataclass(frozen=True, slots=True, order=True)
class Voter:
    """A node as Raft knows it: a broker and its disk. A wiped disk gets a new directory id: it is another node."""

    id: int
    directory_id: str

    def __str__(self) -> str:
        return f"{self.id}/{self.directory_id}"


Voters = tuple[Voter, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log: `data` of the state machine, or a whole voter set, or neither (a leader's first)."""

    index: int
    term: int
    data: bytes | None = None
    voters: Voters | None = None

    @property
    def size_bytes(self) -> int:
        """What it counts where bytes are bounded."""
        return ENTRY_OVERHEAD_BYTES * (1 + len(self.voters or ())) + len(self.data or b"")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after applying every entry up to `index`; `voters` is the last voter set at or below it."""

    index: int
    term: int
    voters: Voters
    data: bytes


NOTHING: Final = Snapshot(0, 0, (), b"")
"""What every node starts from that does not create a cluster."""


def first_snapshot(voters: Voters, data: bytes = b"") -> Snapshot:
    """What the voters of a new cluster start from, the same on each. It stands for index 1, so whoever has nothing is
    sent it, and knows the voters before any entry; the first entry has index 2."""
    return Snapshot(1, 0, tuple(sorted(voters)), data)


@dataclass(frozen=True, slots=True)
class HardState:
    """What must never be forgotten: the term, and who got this node's vote in it."""

    term: int = 0
    voted_for: Voter | None = None


# Messages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Parent of all messages. `to` names the disk as well: whoever has the id but another disk does not listen."""

    source: Voter
    to: Voter
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVote(Message):
    """Asks for a vote in `term`; with `pre_vote`, whether it would be given, which changes nothing at the voter.

    `transfer`: the leader of the term before asked for this election, so its lease does not stand against it.
    """

    last_log_index: int
    last_log_term: int
    pre_vote: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVoteReply(Message):
    """Answers the request for `requested_term`; `term` is the voter's own, as in every message."""

    requested_term: int
    granted: bool
    pre_vote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntries(Message):
    """Entries that follow (`previous_index`, `previous_term`); without entries a heartbeat. `sent_ms` comes back."""

    previous_index: int
    previous_term: int
    entries: tuple[Entry, ...]
    commit_index: int
    sent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntriesReply(Message):
    """The follower holds on its disk what the leader holds up to `match_index`; or it refused `previous_index`.

    A refusal hints where the logs may part: the follower's entry at `hint_index` has `hint_term`, and what follows it
    cannot match. Answers an InstallSnapshot too. `requested_term` and `sent_ms` are those of the message answered: a
    reply to an earlier term's says nothing to a leader but what `term` is now.
    """

    requested_term: int
    success: bool
    match_index: int
    previous_index: int
    hint_index: int
    hint_term: int
    sent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSnapshot(Message):
    """For a follower that needs entries which the leader has compacted. Answered by AppendEntriesReply."""

    snapshot: Snapshot
    sent_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow(Message):
    """The leader asks the follower, whose log is complete, to stand for election at once."""


# What the shell must do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """Who this node is and whom it follows. It may act for the cluster only where `ready_to_lead`."""

    role: Role
    term: int
    leader: Voter | None
    ready_to_lead: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """Work for the shell, in the order of the fields; then `Raft.advance()`.

    1. Write `hard_state`, then `snapshot` (whole, by rename; it replaces the log), then cut the log from
       `truncate_from` on, then append `entries`. Make it all durable (`must_sync`). A crash may leave any first part of
       these writes behind, in this order, and no later one without an earlier one.
    2. Only then send `messages`. They may be lost, repeated and overtaken.
    3. Give the state machine `snapshot`, which replaces its state, then apply `committed`. Entries of a leader's start
       and of voters are among them, so that indexes have no gaps.
    4. Take note of `status`, where it changed.

    If a write or a sync fails, the node must stop without advancing: what is on its disk is then unknown.
    """

    hard_state: HardState | None
    snapshot: Snapshot | None
    truncate_from: int | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]
    committed: tuple[Entry, ...]
    status: Status | None

    @property
    def must_sync(self) -> bool:
        """Whether anything must be durable before the messages go out."""
        return bool(self.hard_state or self.snapshot or self.truncate_from or self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftSettings:
    """Times and bounds; the same on every voter.

    A leader that hears no majority for `election_timeout_ms` steps down, and a node that heard a leader within it votes
    for nobody else. Nodes stand for election after one to two such timeouts of silence. Clocks must run within
    `clock_drift` (a part of one) of true time for leases to exclude each other; nothing else depends on clocks.
    """

    election_timeout_ms: float = 1_000
    heartbeat_interval_ms: float = 200
    clock_drift: float = 0.05
    max_append_bytes: int = 1 << 20
    max_appends_in_flight: int = 16
    max_uncommitted_bytes: int = 64 << 20

    @property
    def lease_ms(self) -> float:
        """How long after it sent a heartbeat a leader may rely on those that answered: the slowest clock's leader must
        give up before the fastest clock's follower votes for another."""
        return self.election_timeout_ms * (1 - self.clock_drift) / (1 + self.clock_drift)
