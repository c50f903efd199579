"""A simulated disk under one Raft node: what was not synced before a crash is lost, from some write on."""

from __future__ import annotations

import random

from raystream.core.raft_messages import NOTHING, Entry, HardState, Ready, Snapshot, Voter, Voters

Write = HardState | Snapshot | Entry | tuple[str, int]
"""A cut is ("from", index), ("up to", index); the rest is written as it is."""


class Disk:
    """`hard_state`, `snapshot` and `entries` are durable; `pending` was written and not synced yet."""

    def __init__(self, directory_id: str, snapshot: Snapshot = NOTHING) -> None:
        self.directory_id = directory_id
        self.hard_state = HardState()
        self.snapshot = snapshot
        self.entries: list[Entry] = []
        self.pending: list[Write] = []

    def write(self, ready: Ready, *, with_votes: bool = True) -> None:
        """The writes of a Ready, in its order."""
        if ready.hard_state is not None and with_votes:
            self.pending.append(ready.hard_state)
        if ready.snapshot is not None:
            self.pending += [ready.snapshot, ("from", 0)]
        if ready.truncate_from is not None:
            self.pending.append(("from", ready.truncate_from))
        self.pending += ready.entries

    def compact(self, snapshot: Snapshot) -> None:
        """A snapshot of the node's own state machine, then the end of what it stands for."""
        self.pending += [snapshot, ("up to", snapshot.index)]

    def sync(self) -> None:
        """Everything written is durable."""
        for write in self.pending:
            self._apply(write)
        self.pending.clear()

    def crash(self, rng: random.Random) -> None:
        """Some first part of what was written and not synced has reached the disk, and nothing after it."""
        del self.pending[rng.randint(0, len(self.pending)) :]
        self.sync()

    def _apply(self, write: Write) -> None:
        match write:
            case HardState():
                self.hard_state = write
            case Snapshot():
                self.snapshot = write
            case Entry():
                self.entries.append(write)
            case ("from", index):
                self.entries = [entry for entry in self.entries if entry.index < index]
            case (_, index):
                self.entries = [entry for entry in self.entries if entry.index > index]

    def term_at(self, index: int) -> int | None:
        """The durable entry's term; the snapshot's for everything in it, as all of that is committed."""
        if index <= self.snapshot.index:
            return self.snapshot.term
        return next((entry.term for entry in reversed(self.entries) if entry.index == index), None)

    def end(self) -> tuple[int, int]:
        """(term, index) of the durable log's end, as elections compare it."""
        last = (self.snapshot.term, self.snapshot.index)
        return max(last, (self.entries[-1].term, self.entries[-1].index)) if self.entries else last

    def voters(self) -> Voters:
        """The last voter set that is durable."""
        named = (entry.voters for entry in reversed(self.entries) if entry.voters is not None)
        return next(named, self.snapshot.voters)


def identity(node_id: int, disk: Disk) -> Voter:
    """A broker with the disk that it has."""
    return Voter(node_id, disk.directory_id)
