"""What must hold after every event of a simulated cluster, whatever happened: see `Checks`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from raystream.core.quorum import majority
from raystream.core.raft import Raft
from raystream.core.raft_messages import (
    Entry,
    Message,
    Ready,
    RequestVote,
    RequestVoteReply,
    Snapshot,
    TimeoutNow,
    Voter,
    Voters,
)
from tests.sim.raft_disk import Disk
from tests.sim.world import require


class Node(Protocol):
    """What the checks look at."""

    identity: Voter
    disk: Disk
    raft: Raft | None

    @property
    def holds_lease(self) -> bool:
        """Whether it believes so at this moment, by its own clock."""


def digest_after(before: bytes, entry: Entry) -> bytes:
    """The state machine's state: a hash over all that was applied, in order."""
    return hashlib.blake2b(before + repr((entry.index, entry.term, entry.data)).encode(), digest_size=8).digest()


class Checks:
    """Everything that was ever seen in a run.

    One leader per term · one vote per node and term, over crashes · log matching: an (index, term) has one content and
    one predecessor everywhere, for ever · what is committed is durable on a majority, and nobody without it can be
    elected · a leader has all that was committed in earlier terms · all apply the same entries in the same order ·
    who holds a lease knows of all commits, and no two hold one at the same true time.
    """

    def __init__(self, first_voters: Voters) -> None:
        self._leaders: dict[int, Voter] = {}
        self._votes: dict[tuple[Voter, int], Voter] = {}
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        self.committed = [Entry(1, 0, voters=first_voters)]
        """By index, from 1 on; the first stands for the first snapshot."""
        self._committed_in = [0]
        """The term in which each was."""
        self._digests = [b"", b""]
        self.lost_disks: dict[Voter, Disk] = {}
        """Disks that were wiped, as they were: what was acknowledged from them was on them."""
        self.happened: Counter[str] = Counter()
        """How often some things did, to see that a run was worth it."""

    def ready(self, node: Node, ready: Ready) -> None:
        """Log matching. It follows for whole logs by induction over their entries."""
        raft = node.raft
        assert raft is not None
        self.happened["entries cut off"] += ready.truncate_from is not None
        self.happened["snapshot installed"] += ready.snapshot is not None
        previous_term = raft.log.term_at(ready.entries[0].index - 1) if ready.entries else None
        for entry in ready.entries:
            assert previous_term is not None
            known = self._entries.setdefault((entry.index, entry.term), (entry, previous_term))
            require(
                known == (entry, previous_term),
                f"log matching: {node.identity} holds {entry} after term {previous_term}, another {known}",
            )
            previous_term = entry.term

    def sent(self, message: Message) -> None:
        """Votes, when they leave the node."""
        if isinstance(message, RequestVoteReply) and message.granted and not message.pre_vote:
            self._vote(message.source, message.requested_term, message.to)
        elif isinstance(message, RequestVote) and not message.pre_vote:
            self._vote(message.source, message.term, message.source)
        elif isinstance(message, TimeoutNow):
            self.happened["lead offered"] += 1

    def _vote(self, voter: Voter, term: int, candidate: Voter) -> None:
        first = self._votes.setdefault((voter, term), candidate)
        require(first == candidate, f"votes: {voter} voted in term {term} for {first} and for {candidate}")

    def applied(self, node: Node, entry: Entry, digest: bytes) -> None:
        """State machine safety, entry by entry."""
        require(
            entry.index <= len(self.committed) and self.committed[entry.index - 1] == entry,
            f"state machine safety: {node.identity} applies {entry}, which no leader has committed",
        )
        require(self._digests[entry.index] == digest, f"state machine safety: {node.identity} differs at {entry.index}")

    def installed(self, node: Node, snapshot: Snapshot) -> None:
        """State machine safety, snapshots."""
        require(
            snapshot.index < len(self._digests) and self._digests[snapshot.index] == snapshot.data,
            f"state machine safety: {node.identity} installs a wrong snapshot at {snapshot.index}",
        )
        named = (entry.voters for entry in reversed(self.committed[: snapshot.index]) if entry.voters is not None)
        voters = next(named)
        raft = node.raft
        assert raft is not None
        require(
            snapshot.voters == voters and (raft.log.voters_index > snapshot.index or raft.voters == voters),
            f"voters: {node.identity} knows {raft.voters} and not {voters} at {snapshot.index}",
        )

    def stepped(self, node: Node, nodes: Mapping[int, Node]) -> None:
        """After an event at `node`."""
        raft = node.raft
        if raft is None:
            return
        others = [other for other in nodes.values() if other is not node]
        if raft.role == "leader":
            if raft.term not in self._leaders:
                self._elected(node, raft)
            first = self._leaders[raft.term]
            require(first == node.identity, f"election safety: {first} and {node.identity} lead term {raft.term}")
        if raft.log.commit_index > len(self.committed):
            self._commit(node, raft, nodes.values())
            for other in others:
                require(not other.holds_lease, f"lease: {node.identity} commits while {other.identity} holds one")
        if node.holds_lease:
            known = raft.log.commit_index
            require(known == len(self.committed), f"lease: {node.identity} holds one and knows of {known} commits only")
            for other in others:
                require(not other.holds_lease, f"lease: {node.identity} and {other.identity} hold one at the same time")

    def _elected(self, node: Node, raft: Raft) -> None:
        self._leaders[raft.term] = node.identity
        self.happened["election won"] += 1
        log = raft.log
        missing = [
            entry
            for entry, term in zip(self.committed, self._committed_in, strict=True)
            if term < raft.term and entry.index >= log.base_index and log.term_at(entry.index) != entry.term
        ]
        require(not missing, f"leader completeness: {node.identity} leads term {raft.term} without {missing[:1]}")

    def _commit(self, node: Node, raft: Raft, nodes: Iterable[Node]) -> None:
        first = len(self.committed) + 1
        for entry in raft.log.slice(first, raft.log.commit_index + 1):
            self.committed.append(entry)
            self._committed_in.append(raft.term)
            if entry.voters is not None:
                self.happened["voters committed"] += 1
                self.happened["leader removed"] += node.identity not in entry.voters
            self._digests.append(digest_after(self._digests[-1], entry))
        last = self.committed[-1]
        voters = [other for other in nodes if other.identity in raft.voters]
        needed = majority(len(raft.voters))
        disks = {voter: disk for voter, disk in self.lost_disks.items() if voter in raft.voters}
        disks |= {voter.identity: voter.disk for voter in voters}
        holding = [voter for voter, disk in disks.items() if disk.term_at(last.index) == last.term]
        require(
            len(holding) >= needed,
            f"durability: {node.identity} commits {last}, durable on {[str(voter) for voter in holding]}",
        )
        for candidate in voters:
            if candidate.identity not in holding:
                end = candidate.disk.end()
                supporters = sum(voter.disk.end() <= end for voter in voters)
                require(
                    supporters < needed,
                    f"leader completeness: {node.identity} commits {last}; {candidate.identity} could lead without it",
                )
