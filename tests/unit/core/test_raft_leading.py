"""What a Raft leader does: its lease, handing over, changes of voters, snapshots, bounds. Cases made by hand."""

from __future__ import annotations

import dataclasses

import pytest

from raystream.core.raft_messages import (
    NOTHING,
    AppendEntries,
    AppendEntriesReply,
    HardState,
    InstallSnapshot,
    RaftSettings,
    RequestVote,
    Snapshot,
    TimeoutNow,
    Voter,
)
from raystream.errors import InvalidArgument, NotLeader, Overloaded, Unavailable
from tests.unit.core.raft_nodes import (
    FIVE,
    FOUR,
    ONE,
    SETTINGS,
    THREE,
    TWO,
    VOTERS,
    accept,
    accept_all,
    append,
    drain,
    leader,
    lease,
    raft,
    request_vote,
    role,
    sent,
)

# Lease --------------------------------------------------------------------------------------------------------------


def test_a_lease_counts_from_the_sending_of_what_a_majority_has_answered() -> None:
    node = leader(voters=VOTERS)
    node.tick(2_500)
    heartbeats = drain(node)
    accept_all(node, heartbeats, 2_900, but=(THREE, FOUR, FIVE))
    assert node.lease_until_ms == 3_000
    accept_all(node, heartbeats, 2_950, but=(TWO, FOUR, FIVE))
    assert node.lease_until_ms == 3_500


def test_the_slowest_leader_gives_up_before_the_fastest_follower_votes() -> None:
    settings = RaftSettings(election_timeout_ms=1_000, clock_drift=0.1)
    assert settings.lease_ms / (1 - settings.clock_drift) <= settings.election_timeout_ms / (1 + settings.clock_drift)


def test_a_refusal_to_a_message_of_an_earlier_term_counts_for_nothing() -> None:
    node = leader(voters=VOTERS)
    before = node.lease_until_ms
    node.tick(2_500)
    drain(node)
    for voter in (TWO, THREE):
        refusal = AppendEntriesReply(
            source=voter,
            to=ONE,
            term=2,
            requested_term=1,
            success=False,
            match_index=0,
            previous_index=1,
            hint_index=0,
            hint_term=0,
            sent_ms=999_999,  # by the clock of an earlier life
        )
        node.step(refusal, 2_500)
    assert node.lease_until_ms == before


def test_old_and_repeated_answers_do_not_move_a_lease() -> None:
    node = leader()
    node.tick(2_500)
    heartbeats = drain(node)
    accept_all(node, heartbeats, 2_510, but=(THREE,))
    node.step(accept(append(ONE, TWO, 2, sent_ms=2_000)), 2_600)
    accept_all(node, heartbeats, 2_700, but=(THREE,))
    assert node.lease_until_ms == 3_500


def test_followers_have_no_lease() -> None:
    assert raft().lease_until_ms is None


# Handing over -------------------------------------------------------------------------------------------------------


def test_a_transfer_completes_the_log_gives_up_the_lease_and_takes_no_proposals() -> None:
    node = leader()
    node.propose(b"x")
    node.transfer_leadership(TWO.id)
    with pytest.raises(Unavailable, match="handed to broker 2"):
        node.propose(b"y")
    readies = drain(node)
    assert sent(readies, TimeoutNow) == []
    assert lease(node) is not None
    accept_all(node, readies, 2_001, but=(THREE,))
    (request,) = sent(drain(node), TimeoutNow)
    assert request.to == TWO
    assert lease(node) is None
    node.step(request_vote(TWO, ONE, 3, last=(2, 3), transfer=True), 2_002)
    assert (node.role, node.term) == ("follower", 3)


def test_a_transfer_that_comes_to_nothing_ends_and_the_lease_stays_given_up() -> None:
    node = leader()
    node.transfer_leadership(TWO.id)
    for now_ms in range(2_100, 3_100, 100):
        node.tick(now_ms)
        accept_all(node, drain(node), now_ms)
    assert node.propose(b"x") == 3
    assert node.lease_until_ms is None


def test_who_is_asked_to_stand_does_so_at_once() -> None:
    node = raft(TWO)
    node.step(append(ONE, TWO, 1), 10)
    node.step(TimeoutNow(source=ONE, to=TWO, term=1), 11)
    requests = sent(drain(node), RequestVote)
    assert {(m.term, m.pre_vote, m.transfer) for m in requests} == {(2, False, True)}
    node.step(TimeoutNow(source=ONE, to=TWO, term=1), 12)
    assert node.term == 2


@pytest.mark.parametrize("to", [ONE.id, FOUR.id])
def test_the_lead_goes_to_another_voter_only(to: int) -> None:
    with pytest.raises(InvalidArgument, match="not another voter"):
        leader().transfer_leadership(to)


# Voters -------------------------------------------------------------------------------------------------------------


def test_a_new_voter_counts_at_once() -> None:
    node = leader(voters=(ONE,))
    node.observe(TWO)
    accept_all(node, drain(node), 2_001)
    node.propose_voters((ONE, TWO))
    readies = drain(node)
    assert node.voters == (ONE, TWO)
    assert node.log.commit_index == 2
    accept_all(node, readies, 2_002)
    assert node.log.commit_index == 3


def test_voters_change_one_after_the_other_and_after_the_first_commit() -> None:
    node = leader(commit=False)
    with pytest.raises(Unavailable, match="has not committed an entry of its own"):
        node.propose_voters(VOTERS[:4])
    node = leader()
    with pytest.raises(InvalidArgument, match="one at a time"):
        node.propose_voters(VOTERS)
    node.propose_voters(VOTERS[:4])
    with pytest.raises(Unavailable, match="not committed yet"):
        node.propose_voters(VOTERS[:3])


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    node = leader()
    node.propose_voters((TWO, THREE))
    readies = drain(node)
    accept_all(node, readies, 2_001, but=(THREE,))
    assert role(node) == "leader"  # its own vote does not count any more
    accept_all(node, readies, 2_002, but=(TWO,))
    assert role(node) == "follower"
    node.tick(60_000)
    assert role(node) == "follower"
    told = [m.commit_index for m in sent(drain(node), AppendEntries)]
    assert max(told) == 3


def test_who_may_not_be_removed_yet_still_stands_for_election() -> None:
    node = leader()
    node.propose_voters((TWO, THREE))
    drain(node)
    node.tick(3_500)
    assert role(node) == "follower"
    node.tick(9_000)
    assert {m.to for m in sent(drain(node), RequestVote)} == {TWO, THREE}


def test_an_observer_gets_the_log_and_has_no_say() -> None:
    node = leader()
    node.observe(FOUR)
    node.propose(b"x")
    readies = drain(node)
    accept_all(node, readies, 2_001, but=(TWO, THREE))
    drain(node)
    assert node.log.commit_index == 2
    progress = node.progress(FOUR)
    assert progress is not None
    node.forget(FOUR)
    assert FOUR not in node.followers()
    with pytest.raises(InvalidArgument, match="is a voter"):
        node.forget(TWO)


def test_only_a_leader_takes_proposals() -> None:
    node = raft()
    node.step(append(TWO, ONE, 1), 0)
    for call in (lambda: node.propose(b"x"), lambda: node.propose_voters(VOTERS), lambda: node.transfer_leadership(2)):
        with pytest.raises(NotLeader, match="broker 2 does"):
            call()


# Snapshots ----------------------------------------------------------------------------------------------------------


def test_whoever_has_nothing_is_sent_the_first_snapshot_and_with_it_the_voters() -> None:
    node = leader(voters=(ONE,))
    empty = raft(FOUR, snapshot=NOTHING, hard_state=HardState())
    node.observe(FOUR)
    for _ in range(4):
        for message in [m for ready in drain(node) for m in ready.messages]:
            empty.step(message, 2_000)
        for message in [m for ready in drain(empty) for m in ready.messages]:
            node.step(message, 2_000)
    assert empty.voters == (ONE,)
    progress = node.progress(FOUR)
    assert progress is not None
    assert (progress.mode, progress.match_index) == ("replicate", node.log.last_index)


def test_a_follower_that_needs_what_was_compacted_is_sent_the_snapshot_once_and_then_heartbeats() -> None:
    node = leader(terms=(1, 1, 1))
    snapshot = node.compact(5, b"state")
    node.tick(2_100)
    drain(node)
    progress = node.progress(THREE)
    assert progress is not None
    refusal = dataclasses.replace(
        accept(append(ONE, THREE, 2)),
        success=False,
        match_index=0,
        previous_index=progress.next_index - 1,
        hint_index=1,
    )
    progress.match_index = 0  # as if it had never answered
    node.step(refusal, 2_101)
    (install,) = sent(drain(node), InstallSnapshot)
    assert install.snapshot == snapshot
    node.tick(2_200)
    readies = drain(node)
    assert sent(readies, InstallSnapshot) == []
    assert [m.previous_index for m in sent(readies, AppendEntries) if m.to == THREE] == [0]
    node.step(accept(install), 2_201)
    assert (progress.mode, progress.match_index) == ("replicate", 5)


def test_a_lost_snapshot_is_sent_again() -> None:
    node = leader(voters=(ONE,))
    node.observe(FOUR)
    drain(node)
    node.step(dataclasses.replace(accept(append(ONE, FOUR, 2)), success=False, match_index=0, previous_index=2), 2_000)
    assert len(sent(drain(node), InstallSnapshot)) == 1
    node.tick(2_999)
    assert sent(drain(node), InstallSnapshot) == []
    node.tick(3_099)
    assert len(sent(drain(node), InstallSnapshot)) == 1


def test_a_snapshot_is_durable_before_it_is_acknowledged_and_names_the_voters() -> None:
    node = raft(terms=(1, 1))
    snapshot = Snapshot(9, 2, VOTERS[:2], b"state")
    node.step(InstallSnapshot(source=TWO, to=ONE, term=2, snapshot=snapshot, sent_ms=0), 0)
    (ready,) = drain(node)
    assert (ready.snapshot, ready.entries, ready.committed) == (snapshot, (), ())
    assert ready.must_sync
    assert [m.match_index for m in sent([ready], AppendEntriesReply)] == [9]
    assert node.voters == VOTERS[:2]


def test_a_snapshot_of_what_the_log_holds_commits_it_and_keeps_what_follows() -> None:
    node = raft(terms=(1, 1, 1))
    snapshot = Snapshot(3, 1, VOTERS[:3], b"state")
    node.step(InstallSnapshot(source=TWO, to=ONE, term=2, snapshot=snapshot, sent_ms=0), 0)
    (ready,) = drain(node)
    assert ready.snapshot is None
    assert [entry.index for entry in ready.committed] == [2, 3]
    assert node.log.last_index == 4


# Flow ---------------------------------------------------------------------------------------------------------------


def test_appends_follow_each_other_up_to_the_bound_and_go_on_when_one_is_answered() -> None:
    settings = dataclasses.replace(SETTINGS, max_append_bytes=1, max_appends_in_flight=3)
    node = leader(settings=settings)
    for _ in range(10):
        node.propose(b"x")
    requests = [m for m in sent(drain(node), AppendEntries) if m.to == TWO]
    assert [entry.index for m in requests for entry in m.entries] == [3, 4, 5]
    node.step(accept(requests[0]), 2_001)
    assert [e.index for m in sent(drain(node), AppendEntries) if m.to == TWO for e in m.entries] == [6]


def test_a_heartbeat_finds_out_what_was_lost() -> None:
    node = leader()
    node.propose(b"x")
    drain(node)  # lost
    node.tick(2_100)
    (heartbeat,) = [m for m in sent(drain(node), AppendEntries) if m.to == TWO]
    assert (heartbeat.previous_index, heartbeat.entries) == (3, ())
    refusal = dataclasses.replace(
        accept(heartbeat), success=False, match_index=0, previous_index=3, hint_index=2, hint_term=2
    )
    node.step(refusal, 2_101)
    (again,) = [m for m in sent(drain(node), AppendEntries) if m.to == TWO]
    assert [entry.index for entry in again.entries] == [3]


def test_what_waits_to_be_committed_is_bounded() -> None:
    node = leader(settings=dataclasses.replace(SETTINGS, max_uncommitted_bytes=200))
    node.propose(b"x" * 100)
    with pytest.raises(Overloaded, match="132 bytes wait"):
        node.propose(b"x" * 100)
    accept_all(node, drain(node), 2_001)
    node.propose(b"x" * 100)


def test_nothing_happens_between_ready_and_advance_but_what_comes_next() -> None:
    node = leader()
    node.propose(b"x")
    first = node.ready()
    node.propose(b"y")
    assert not node.has_ready
    with pytest.raises(AssertionError):
        node.ready()
    node.advance()
    second = node.ready()
    assert [entry.data for ready in (first, second) for entry in ready.entries] == [b"x", b"y"]


def test_messages_for_another_directory_are_dropped() -> None:
    node = leader()
    node.step(request_vote(TWO, Voter(1, "another disk"), 9, transfer=True), 2_000)
    assert (node.role, node.has_ready) == ("leader", False)
