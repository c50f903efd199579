"""Known ways to get Raft wrong, each planted from outside: the simulation must catch every one of them.

A bug is a shell that misbehaves, or a method of the core that is replaced while the bug is planted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raystream.core import quorum, raft_follower
from raystream.core.raft import Raft
from raystream.core.raft_leader import Leadership
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    RaftSettings,
    RequestVote,
    Snapshot,
    Voter,
)
from tests.sim.planted import Bug, main, replaced
from tests.sim.raft import Shell, run


def _commit_of_earlier_terms(self: Leadership) -> bool:
    index = int(quorum.reached(self._holds(voter) for voter in self._log.voters))
    return self._log.commit_to(max(index, self._log.commit_index)) or _advance_commit(self)


def _lease_from_the_answer(self: Leadership, reply: AppendEntriesReply, now_ms: float) -> None:
    _on_reply(self, dataclasses.replace(reply, sent_ms=now_ms), now_ms)


def _lease_kept_in_transfer(self: Leadership) -> None:
    _hand_over(self)
    self._lease_given_up = False


def _contact_forgotten(self: Raft, *arguments: Any, **named: Any) -> None:
    _start(self, *arguments, **named)
    self._leader_contact_ms = -math.inf


def _own_entry_counted_at_once(self: Leadership, voter: Voter) -> int:
    return self._log.last_index if voter == self._identity else self._progress[voter].match_index


def _no_truncation(self: RaftLog, entries: Sequence[Entry]) -> None:
    _merge(self, [entry for entry in entries if entry.index > self.last_index])


def _truncation_by_old_messages(self: RaftLog, entries: Sequence[Entry]) -> None:
    if entries and self.commit_index < entries[0].index <= self.last_index:
        self._truncate(entries[0].index)
    _merge(self, entries)


def _commit_beyond_what_matches(log: RaftLog, request: AppendEntries) -> AppendEntriesReply:
    reply = _append(log, request)
    if reply.success:
        log.commit_to(min(request.commit_index, log.last_index))
    return reply


def _match_to_the_end(log: RaftLog, request: AppendEntries) -> AppendEntriesReply:
    reply = _append(log, request)
    return dataclasses.replace(reply, match_index=log.last_index) if reply.success else reply


def _refusals_of_earlier_terms_count(self: Raft, reply: AppendEntriesReply) -> None:
    _on_append_entries_reply(self, dataclasses.replace(reply, requested_term=reply.term))


def _sole_voter_never_waits(self: Raft, *arguments: Any, **named: Any) -> None:
    _start(self, *arguments, **named)
    if self.voters == (self.identity,):
        self._election_deadline_ms = self._now_ms


def _no_check(*_: object) -> None:
    pass


def _two_votes_in_a_term(self: Raft, request: RequestVote) -> None:
    if request.term == self.term and not request.pre_vote and self.role == "follower":
        self._hard_state = HardState(self.term)
    _on_request_vote(self, request)


def _snapshot_without_voters(self: RaftLog, snapshot: Snapshot) -> None:
    before = self.voters
    _install(self, snapshot)
    self._voters = [(snapshot.index, before)]


_on_reply: Final = Leadership.on_reply
_advance_commit: Final = Leadership.advance_commit
_hand_over: Final = Leadership._hand_over_if_complete
_merge: Final = RaftLog.merge
_install: Final = RaftLog.install
_append: Final = raft_follower.append
_start: Final = Raft.__init__
_on_append_entries_reply: Final = Raft._on_append_entries_reply
_on_request_vote: Final = Raft._on_request_vote

BUGS: Final[Mapping[str, Bug]] = {
    "votes are not durable": Bug(Shell(writes_votes=False)),
    "messages leave before the sync": Bug(Shell(sends_after_sync=False)),
    "a wiped disk keeps its directory id": Bug(Shell(keeps_directory_id_when_wiped=True), at=55),
    "two voters change at once": Bug(Shell(max_voters_changed=2), ((quorum, "check_change", _no_check),), at=272),
    "voters change while a change is open": replaced(Leadership, "_check_may_change_voters", _no_check, at=56),
    "two votes in a term": replaced(Raft, "_on_request_vote", _two_votes_in_a_term, at=1),
    "any log may lead": replaced(RaftLog, "is_up_to_date", lambda log, index, term: True, at=2),
    "the longest log may lead": replaced(
        RaftLog, "is_up_to_date", lambda log, index, term: index >= log.last_index, at=19
    ),
    "entries of earlier terms are committed by counting": replaced(
        Leadership, "advance_commit", _commit_of_earlier_terms, at=179
    ),
    "the leader counts its own entry before it is durable": replaced(
        Leadership, "_holds", _own_entry_counted_at_once, at=3
    ),
    "conflicting entries stay": replaced(RaftLog, "merge", _no_truncation, at=2),
    "old messages cut off entries": replaced(RaftLog, "merge", _truncation_by_old_messages, at=11),
    "the follower commits beyond what matches": replaced(raft_follower, "append", _commit_beyond_what_matches, at=88),
    "the follower acknowledges its whole log": replaced(raft_follower, "append", _match_to_the_end, at=995),
    "a snapshot comes without its voters": replaced(RaftLog, "install", _snapshot_without_voters),
    "the lease counts from the answer": replaced(Leadership, "on_reply", _lease_from_the_answer, at=88),
    "the lease outlives an offer of the lead": replaced(
        Leadership, "_hand_over_if_complete", _lease_kept_in_transfer, at=66
    ),
    "the lease disregards the drift of clocks": replaced(
        RaftSettings,
        "lease_ms",
        property(lambda settings: settings.election_timeout_ms),
        at=143,
    ),
    "followers vote while they hear a leader": replaced(Raft, "_hears_a_leader", lambda raft: False, at=226),
    "a restart forgets that a leader was heard": replaced(
        Raft, "__init__", _contact_forgotten, focus=("cut_pair", "crash_and_restart", "mend"), at=619
    ),
    "a refusal to an earlier term's message counts": replaced(
        Raft,
        "_on_append_entries_reply",
        _refusals_of_earlier_terms_count,
        focus=("crash_and_restart", "isolate_leader", "cut_pair", "mend"),
        at=295,
    ),
    "a sole voter never waits": replaced(
        Raft,
        "__init__",
        _sole_voter_never_waits,
        focus=("change_voters", "crash_and_restart", "isolate_leader", "mend"),
        at=9,
    ),
    "a leader may act before its first commit": replaced(
        Raft,
        "ready_to_lead",
        property(lambda raft: raft.role == "leader"),
    ),
}
"""By what is wrong."""


if __name__ == "__main__":
    main(run, BUGS, at_most=600)
