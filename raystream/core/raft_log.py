"""One node's Raft log in memory: what it holds, what of it is durable, committed and applied, and the voters it names.

Indexes begin at 1. Entries up to `base_index` have been compacted away. Always

    base_index ≤ commit_index ≤ last_index    and    applied_index ≤ commit_index    and    durable_index ≤ last_index

A voter set counts from the moment its entry is in the log, committed or not, and no longer once the entry is cut off
(Ongaro's thesis, 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raystream.core.raft_messages import Entry, Snapshot, Voters


class RaftLog:
    """Starts from what a restart found on disk, all of which counts as durable.

    A crash may have come between a snapshot's installation and the end of the log that it replaces: entries that do
    not continue the snapshot are left out, so the shell hands over whatever it found.
    """

    def __init__(self, snapshot: Snapshot, entries: Iterable[Entry] = ()) -> None:
        self.snapshot = snapshot
        self.base_index = snapshot.index
        self._base_term = snapshot.term
        self._entries = _continuing(snapshot, list(entries))
        self._voters: list[tuple[int, Voters]] = [(snapshot.index, snapshot.voters)]
        for entry in self._entries:
            self._note_voters(entry)
        self.commit_index = snapshot.index
        self.applied_index = snapshot.index
        self.durable_index = self.last_index
        self._written_index = self.last_index
        """Up to where entries have been handed to the shell."""
        self._writing_index = self.last_index
        """Up to where they will be durable once the shell has done what it was handed last."""
        self._applying_index = snapshot.index
        self._handed_applying_index = snapshot.index
        self._truncate_from: int | None = None
        self._installing: Snapshot | None = None

    # Reading --------------------------------------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """The last entry's index, or the compacted end's."""
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """The last entry's term."""
        return self._entries[-1].term if self._entries else self._base_term

    def term_at(self, index: int) -> int | None:
        """The term of the entry there; None where the log holds none, be it compacted or not yet written."""
        if index == self.base_index:
            return self._base_term
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return None

    def slice(self, first: int, end: int) -> Sequence[Entry]:
        """Entries from `first` up to, not including, `end`; `first` is beyond what was compacted."""
        return self._entries[first - self.base_index - 1 : end - self.base_index - 1]

    def batch(self, first: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries from `first` on, at most `max_bytes` of them but at least one where there is one."""
        start = first - self.base_index - 1
        end, size_bytes = start, 0
        while end < len(self._entries):
            size_bytes += self._entries[end].size_bytes
            if size_bytes > max_bytes and end > start:
                break
            end += 1
        return tuple(self._entries[start:end])

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so holds all that this one may have helped to commit: the election restriction."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_index_not_after(self, term: int, index: int) -> int:
        """The last index up to `index` whose entry's term is at most `term`; `base_index` or less if none is held."""
        index = min(index, self.last_index)
        while index > self.base_index and self._entries[index - self.base_index - 1].term > term:
            index -= 1
        return index

    def size_bytes(self, first: int, end: int) -> int:
        """What the entries from `first` up to, not including, `end` hold."""
        return sum(entry.size_bytes for entry in self.slice(first, end))

    # Voters ---------------------------------------------------------------------------------------------------------

    @property
    def voters(self) -> Voters:
        """The last voter set in the log: the one that counts."""
        return self._voters[-1][1]

    @property
    def voters_index(self) -> int:
        """Where that set was written."""
        return self._voters[-1][0]

    @property
    def voters_before(self) -> Voters:
        """The set before it, as long as the last one is not known to be committed; then the last one itself."""
        return self._voters[-2][1] if self.voters_index > self.commit_index else self.voters

    def _note_voters(self, entry: Entry) -> None:
        if entry.voters is not None:
            self._voters.append((entry.index, entry.voters))

    # Writing --------------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """A leader's own entry, at the end."""
        assert entry.index == self.last_index + 1, f"entry {entry.index} cannot follow {self.last_index}"
        assert entry.term >= self.last_term, f"term {entry.term} cannot follow {self.last_term}"
        self._entries.append(entry)
        self._note_voters(entry)

    def merge(self, entries: Sequence[Entry]) -> None:
        """A leader's entries, the first of which continues something held: adds what is new.

        Entries that conflict are cut off first, with all that follows them; entries that are held already stay, and so
        does what follows them, as the message may be an old one.
        """
        for position, entry in enumerate(entries):
            held = self.term_at(entry.index)
            if held is None and entry.index <= self.base_index:
                continue
            if held != entry.term:
                if held is not None:
                    self._truncate(entry.index)
                for new in entries[position:]:
                    self.append(new)
                return

    def _truncate(self, index: int) -> None:
        assert index > self.commit_index, f"entry {index} conflicts, and {self.commit_index} is committed"
        del self._entries[index - self.base_index - 1 :]
        while self.voters_index >= index:
            self._voters.pop()
        self.durable_index = min(self.durable_index, index - 1)
        self._writing_index = min(self._writing_index, index - 1)
        if self._written_index >= index:
            self._written_index = index - 1
            self._truncate_from = index if self._truncate_from is None else min(self._truncate_from, index)

    def commit_to(self, index: int) -> bool:
        """Everything up to `index` is committed; says whether that is new. It never moves back."""
        assert index <= self.last_index, f"{index} is committed, and the log ends at {self.last_index}"
        if index <= self.commit_index:
            return False
        self.commit_index = index
        return True

    def install(self, snapshot: Snapshot) -> None:
        """The leader's snapshot in place of everything held."""
        assert snapshot.index > self.commit_index
        self.snapshot = self._installing = snapshot
        self.base_index, self._base_term = snapshot.index, snapshot.term
        self._entries.clear()
        self._voters = [(snapshot.index, snapshot.voters)]
        self.commit_index = self._applying_index = self._written_index = snapshot.index
        self.durable_index = self._writing_index = 0
        self._truncate_from = None

    def compact(self, index: int, data: bytes, keep_entries: int) -> Snapshot:
        """The state machine's own snapshot; entries up to `keep_entries` before it may go."""
        assert self.snapshot.index <= index <= self.applied_index, f"{index} is not applied, or compacted already"
        term = self.term_at(index)
        assert term is not None
        voters = next(voters for at, voters in reversed(self._voters) if at <= index)
        self.snapshot = Snapshot(index, term, voters, data)
        base = max(self.base_index, index - keep_entries)
        base_term = self.term_at(base)
        assert base_term is not None
        del self._entries[: base - self.base_index]
        self.base_index, self._base_term = base, base_term
        while len(self._voters) > 1 and self._voters[1][0] <= base:
            self._voters.pop(0)
        return self.snapshot

    # What the shell is handed ---------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there is something to write or to apply that the shell was not handed yet."""
        return (
            self._written_index < self.last_index
            or self._applying_index < self.commit_index
            or self._truncate_from is not None
            or self._installing is not None
        )

    def take_work(self) -> tuple[Snapshot | None, int | None, tuple[Entry, ...], tuple[Entry, ...]]:
        """Snapshot to install, index to cut from, entries to append, entries to apply: each is handed over once."""
        entries = tuple(self.slice(self._written_index + 1, self.last_index + 1))
        committed = tuple(self.slice(self._applying_index + 1, self.commit_index + 1))
        work = self._installing, self._truncate_from, entries, committed
        self._written_index = self._writing_index = self.last_index
        self._applying_index = self._handed_applying_index = self.commit_index
        self._installing = self._truncate_from = None
        return work

    def work_done(self) -> None:
        """What was taken is durable and applied, but for what was cut off or replaced meanwhile."""
        self.durable_index = max(self.durable_index, self._writing_index)
        self.applied_index = self._handed_applying_index


def _continuing(snapshot: Snapshot, entries: list[Entry]) -> list[Entry]:
    """The entries that follow the snapshot, if what was found on disk is known to continue it."""
    boundary = next((entry for entry in entries if entry.index == snapshot.index), None)
    following = [entry for entry in entries if entry.index > snapshot.index]
    if (boundary is not None and boundary.term != snapshot.term) or not following:
        return []
    return following if following[0].index == snapshot.index + 1 else []
