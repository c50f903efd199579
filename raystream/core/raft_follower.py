"""What a follower does with its leader's entries and snapshots, and what it answers.

An answer may only be sent once everything that the log held when it was made is durable: `Ready` sees to that.
"""

from __future__ import annotations

from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import AppendEntries, AppendEntriesReply, InstallSnapshot


def append(log: RaftLog, request: AppendEntries) -> AppendEntriesReply:
    """Adds the entries if they continue what the log holds. Otherwise says how far back the logs may still agree.

    What is committed here is the leader's as well, so nothing below it is ever compared, cut off or asked for again.
    """
    previous_index = request.previous_index
    known = previous_index <= log.commit_index
    if not known and log.term_at(previous_index) != request.previous_term:
        hint_index = max(log.last_index_not_after(request.previous_term, previous_index), log.commit_index)
        return answer(request, request.term, hint_index=hint_index, hint_term=log.term_at(hint_index) or 0)
    log.merge(request.entries)
    match_index = max(previous_index + len(request.entries), log.commit_index)
    log.commit_to(min(request.commit_index, match_index))
    return answer(request, request.term, match_index=match_index)


def install(log: RaftLog, request: InstallSnapshot) -> AppendEntriesReply:
    """Takes the snapshot in place of the log, unless the log holds what it stands for."""
    snapshot = request.snapshot
    if snapshot.index > log.commit_index:
        if log.term_at(snapshot.index) == snapshot.term:
            log.commit_to(snapshot.index)
        else:
            log.install(snapshot)
    return answer(request, request.term, match_index=log.commit_index)


def answer(
    request: AppendEntries | InstallSnapshot,
    term: int,
    *,
    match_index: int | None = None,
    hint_index: int = 0,
    hint_term: int = 0,
) -> AppendEntriesReply:
    """Without a `match_index` it is a refusal, be it of a place in the log or, with a later `term`, of the leader."""
    return AppendEntriesReply(
        source=request.to,
        to=request.source,
        term=term,
        requested_term=request.term,
        success=match_index is not None,
        match_index=match_index or 0,
        previous_index=request.previous_index if isinstance(request, AppendEntries) else 0,
        hint_index=hint_index,
        hint_term=hint_term,
        sent_ms=request.sent_ms,
    )
