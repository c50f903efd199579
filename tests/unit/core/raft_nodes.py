"""A Raft node and its messages, for cases made by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from raystream.core.raft import Raft
from raystream.core.raft_messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    InstallSnapshot,
    Message,
    RaftSettings,
    Ready,
    RequestVote,
    RequestVoteReply,
    Role,
    Snapshot,
    Voter,
    Voters,
    first_snapshot,
)

SETTINGS = RaftSettings(election_timeout_ms=1_000, heartbeat_interval_ms=100, clock_drift=0.0)
VOTERS = tuple(Voter(node_id, f"disk {node_id}") for node_id in range(1, 6))
ONE, TWO, THREE, FOUR, FIVE = VOTERS
TERM_ONE = HardState(1)

M = TypeVar("M", bound=Message)


def raft(
    identity: Voter = ONE,
    voters: Voters = VOTERS[:3],
    *,
    hard_state: HardState = TERM_ONE,
    terms: Sequence[int] = (),
    snapshot: Snapshot | None = None,
    settings: RaftSettings = SETTINGS,
) -> Raft:
    """A node that starts at time 0 with entries of these terms from index 2 on."""
    return Raft(
        identity,
        hard_state=hard_state,
        snapshot=first_snapshot(voters) if snapshot is None else snapshot,
        entries=[Entry(2 + place, term, data=b"old") for place, term in enumerate(terms)],
        rng=random.Random(1),
        now_ms=0,
        settings=settings,
    )


def drain(node: Raft) -> list[Ready]:
    """Does all that the node asks for, as a shell with a perfect disk would."""
    done = []
    while node.has_ready:
        done.append(node.ready())
        node.advance()
    return done


def sent(readies: Iterable[Ready], kind: type[M]) -> list[M]:
    """The messages of one kind."""
    return [message for ready in readies for message in ready.messages if isinstance(message, kind)]


def vote(source: Voter, to: Voter, term: int, *, granted: bool = True, pre_vote: bool = False) -> RequestVoteReply:
    own_term = term - 1 if pre_vote else term
    return RequestVoteReply(
        source=source, to=to, term=own_term, requested_term=term, granted=granted, pre_vote=pre_vote
    )


def request_vote(
    source: Voter,
    to: Voter,
    term: int,
    *,
    last: tuple[int, int] = (9, 9),
    pre_vote: bool = False,
    transfer: bool = False,
) -> RequestVote:
    last_term, last_index = last
    return RequestVote(
        source=source,
        to=to,
        term=term,
        last_log_index=last_index,
        last_log_term=last_term,
        pre_vote=pre_vote,
        transfer=transfer,
    )


def append(
    source: Voter,
    to: Voter,
    term: int,
    *,
    previous: tuple[int, int] = (1, 0),
    terms: Sequence[int] = (),
    commit: int = 1,
    sent_ms: float = 0,
) -> AppendEntries:
    index, previous_term = previous
    entries = tuple(Entry(index + 1 + place, entry_term, data=b"new") for place, entry_term in enumerate(terms))
    return AppendEntries(
        source=source,
        to=to,
        term=term,
        previous_index=index,
        previous_term=previous_term,
        entries=entries,
        commit_index=commit,
        sent_ms=sent_ms,
    )


def accept(request: AppendEntries | InstallSnapshot) -> AppendEntriesReply:
    """What a follower that takes it all answers."""
    match request:
        case AppendEntries():
            match_index = request.previous_index + len(request.entries)
        case InstallSnapshot():
            match_index = request.snapshot.index
    return AppendEntriesReply(
        source=request.to,
        to=request.source,
        term=request.term,
        requested_term=request.term,
        success=True,
        match_index=match_index,
        previous_index=0,
        hint_index=0,
        hint_term=0,
        sent_ms=request.sent_ms,
    )


def leader(identity: Voter = ONE, voters: Voters = VOTERS[:3], *, commit: bool = True, **named: object) -> Raft:
    """A node elected at time 2,000 in its next term, with its first entry committed unless told otherwise."""
    node = raft(identity, voters, **named)  # type: ignore[arg-type]
    term = node.term + 1
    node.tick(2_000)
    drain(node)
    others = [voter for voter in voters if voter != identity]
    answered: list[Ready] = []
    for pre_vote in (True, False):
        for other in others:
            node.step(vote(other, identity, term, pre_vote=pre_vote), 2_000)
        answered = drain(node)
    assert role(node) == "leader"
    if commit:
        accept_all(node, answered, 2_000)
        drain(node)
        assert node.ready_to_lead
    return node


def accept_all(node: Raft, readies: Iterable[Ready], now_ms: float, but: Iterable[Voter] = ()) -> None:
    """Followers take what they were sent, but for some that are not heard."""
    for message in [message for ready in readies for message in ready.messages]:
        if isinstance(message, (AppendEntries, InstallSnapshot)) and message.to not in but:
            node.step(accept(message), now_ms)


# A type checker takes a property that was compared for a constant; it does not do so for a call.


def role(node: Raft) -> Role:
    """What the node is now."""
    return node.role


def leads(node: Raft) -> bool:
    """Whether it may act now."""
    return node.ready_to_lead


def lease(node: Raft) -> float | None:
    """Until when it has the lease now."""
    return node.lease_until_ms
