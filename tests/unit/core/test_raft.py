"""Raft's rules for elections and logs, each by a case made by hand. How they hold together is `tests/sim`'s."""

from __future__ import annotations

import dataclasses
import random

import pytest

from raystream.core.raft import Raft
from raystream.core.raft_messages import (
    NOTHING,
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    RequestVote,
    RequestVoteReply,
    Voter,
    first_snapshot,
)
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
    leads,
    raft,
    request_vote,
    role,
    sent,
    vote,
)

# Elections ----------------------------------------------------------------------------------------------------------


def test_a_pre_vote_changes_nothing_and_an_election_follows_only_when_it_is_won() -> None:
    node = raft()
    node.tick(2_000)
    (ready,) = drain(node)
    assert ready.hard_state is None
    assert {(m.to, m.term, m.pre_vote) for m in sent([ready], RequestVote)} == {(TWO, 2, True), (THREE, 2, True)}
    assert (node.role, node.term) == ("pre-candidate", 1)
    node.step(vote(TWO, ONE, 2, pre_vote=True), 2_001)
    (ready,) = drain(node)
    assert ready.hard_state == HardState(2, ONE)
    assert {(m.to, m.term, m.pre_vote) for m in sent([ready], RequestVote)} == {(TWO, 2, False), (THREE, 2, False)}


def test_a_node_that_nobody_would_elect_keeps_its_term() -> None:
    node = raft()
    for time_ms in range(2_000, 60_000, 2_000):
        node.tick(time_ms)
        for ready in drain(node):
            assert ready.hard_state is None
        for other in (TWO, THREE):
            node.step(vote(other, ONE, 2, granted=False, pre_vote=True), time_ms)
    assert node.term == 1


def test_a_granted_vote_is_in_the_same_ready_as_its_reply() -> None:
    node = raft()
    node.step(request_vote(TWO, ONE, 5), 2_000)
    (ready,) = drain(node)
    assert ready.hard_state == HardState(5, TWO)
    assert ready.must_sync
    (reply,) = sent([ready], RequestVoteReply)
    assert reply.granted and reply.term == 5


def test_one_vote_in_a_term_also_after_a_restart() -> None:
    node = raft(hard_state=HardState(5, TWO))
    node.step(request_vote(THREE, ONE, 5), 2_000)
    node.step(request_vote(dataclasses.replace(TWO, directory_id="wiped"), ONE, 5), 2_000)
    node.step(request_vote(TWO, ONE, 5), 2_000)
    assert [reply.granted for reply in sent(drain(node), RequestVoteReply)] == [False, False, True]


@pytest.mark.parametrize("pre_vote", [True, False])
@pytest.mark.parametrize(("last", "granted"), [((2, 4), True), ((3, 2), True), ((2, 3), False), ((1, 9), False)])
def test_no_vote_for_a_log_that_lacks_something(last: tuple[int, int], granted: bool, pre_vote: bool) -> None:
    node = raft(terms=(1, 2, 2))
    node.step(request_vote(TWO, ONE, 5, last=last, pre_vote=pre_vote), 2_000)
    (reply,) = sent(drain(node), RequestVoteReply)
    assert reply.granted == granted


@pytest.mark.parametrize("pre_vote", [True, False])
def test_no_vote_and_no_new_term_while_a_leader_is_heard_unless_it_asks_for_that(pre_vote: bool) -> None:
    node = raft()
    node.step(append(TWO, ONE, 1), 5_000)
    node.step(request_vote(THREE, ONE, 2, pre_vote=pre_vote), 5_999)
    assert [reply.granted for reply in sent(drain(node), RequestVoteReply)] == [False]
    assert (node.term, node.leader) == (1, TWO)
    node.step(request_vote(THREE, ONE, 2, transfer=True), 5_999)
    assert [reply.granted for reply in sent(drain(node), RequestVoteReply)] == [True]


def test_after_a_restart_a_leader_may_still_count_on_it() -> None:
    node = raft()
    node.step(request_vote(TWO, ONE, 2), 999)
    node.step(request_vote(TWO, ONE, 2), 1_000)
    assert [reply.granted for reply in sent(drain(node), RequestVoteReply)] == [False, True]


def test_its_own_vote_counts_once_it_is_durable() -> None:
    node = raft(voters=(ONE,))
    node.tick(0)
    assert role(node) == "candidate"
    assert node.ready().hard_state == HardState(2, ONE)
    assert role(node) == "candidate"
    node.advance()
    assert role(node) == "leader"


def test_a_sole_voter_leads_and_commits_at_once() -> None:
    node = raft(voters=(ONE,))
    node.tick(0)
    drain(node)
    assert leads(node)
    node.propose(b"x")
    assert [entry.data for ready in drain(node) for entry in ready.committed] == [b"x"]
    node.tick(50)
    assert node.lease_until_ms == 1_050


def test_a_sole_voter_waits_where_the_leader_that_it_removed_may_lead_still() -> None:
    node = Raft(
        ONE,
        hard_state=HardState(2),
        snapshot=first_snapshot((ONE, TWO)),
        entries=[Entry(2, 2, voters=(ONE,))],
        rng=random.Random(1),
        now_ms=0,
        settings=SETTINGS,
    )
    node.tick(999)
    assert role(node) == "follower"
    node.tick(2_000)
    drain(node)
    assert role(node) == "leader"


def test_replies_to_another_election_do_not_count() -> None:
    node = raft()
    node.tick(2_000)
    drain(node)
    node.step(vote(TWO, ONE, 2, pre_vote=True), 2_000)
    drain(node)
    node.step(vote(TWO, ONE, 2, pre_vote=True), 2_000)
    node.step(dataclasses.replace(vote(TWO, ONE, 1), term=2), 2_000)
    assert role(node) == "candidate"
    node.step(vote(TWO, ONE, 2), 2_000)
    assert role(node) == "leader"


def test_a_leader_is_ready_only_when_an_entry_of_its_term_is_committed_and_applied() -> None:
    node = leader(commit=False, terms=(1, 1))
    node.tick(2_100)
    readies = drain(node)
    assert not leads(node) and node.lease_until_ms is None
    node.step(accept(sent(readies, AppendEntries)[0]), 2_101)
    committed = node.ready()
    assert [entry.index for entry in committed.committed] == [2, 3, 4]
    assert not leads(node)
    node.advance()
    assert leads(node)
    (ready,) = drain(node)
    assert ready.status is not None and ready.status.ready_to_lead


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    node = leader(commit=False, terms=(1,), settings=dataclasses.replace(SETTINGS, max_append_bytes=1))
    node.tick(2_100)
    drain(node)
    node.step(accept(append(ONE, TWO, 2, terms=(1,))), 2_101)
    assert node.log.commit_index == 1
    node.step(accept(append(ONE, TWO, 2, previous=(2, 1), terms=(2,))), 2_102)
    assert node.log.commit_index == 3


def test_a_leader_that_hears_no_majority_steps_down() -> None:
    node = leader(voters=VOTERS)
    node.tick(2_900)
    readies = drain(node)
    accept_all(node, readies, 2_901, but=(THREE, FOUR, FIVE))
    node.tick(2_999)
    assert role(node) == "leader"
    node.tick(3_000)
    assert (node.role, node.leader, node.term) == ("follower", None, 2)


def test_a_higher_term_ends_a_leadership() -> None:
    node = leader()
    node.step(dataclasses.replace(accept(append(ONE, TWO, 2)), term=7, success=False), 2_001)
    assert (node.role, node.term) == ("follower", 7)
    assert drain(node)[0].hard_state == HardState(7)


def test_an_old_leader_is_told_the_term() -> None:
    node = raft(hard_state=HardState(7))
    node.step(append(TWO, ONE, 6), 0)
    (reply,) = sent(drain(node), AppendEntriesReply)
    assert (reply.success, reply.term, reply.requested_term) == (False, 7, 6)


# Directories --------------------------------------------------------------------------------------------------------


def test_a_wiped_disk_has_no_vote_and_is_no_voter() -> None:
    wiped = Voter(1, "new disk")
    node = raft(wiped, hard_state=HardState(), snapshot=NOTHING)
    node.step(request_vote(TWO, ONE, 5), 5_000)
    node.step(append(TWO, ONE, 5), 5_000)
    node.tick(60_000)
    assert not node.has_ready
    assert node.term == 0


def test_a_voter_that_was_added_without_knowing_votes_all_the_same() -> None:
    node = raft(FOUR, voters=VOTERS[:3])
    node.step(request_vote(ONE, FOUR, 5), 2_000)
    assert [reply.granted for reply in sent(drain(node), RequestVoteReply)] == [True]
    node.tick(60_000)
    assert role(node) == "follower"


# Replication --------------------------------------------------------------------------------------------------------


def test_a_leaders_own_entry_counts_once_it_is_durable() -> None:
    node = leader(voters=(ONE, TWO, THREE, FOUR))
    node.propose(b"x")
    ready = node.ready()
    accept_all(node, [ready], 2_001, but=(FOUR,))
    assert node.log.commit_index == 2
    node.advance()
    assert node.log.commit_index == 3


def test_entries_are_durable_before_they_are_acknowledged() -> None:
    node = raft()
    node.step(append(TWO, ONE, 2, terms=(2, 2)), 0)
    (ready,) = drain(node)
    assert [entry.index for entry in ready.entries] == [2, 3]
    assert ready.must_sync
    (reply,) = sent([ready], AppendEntriesReply)
    assert (reply.success, reply.match_index) == (True, 3)


def test_a_heartbeat_acknowledges_what_it_compared_and_no_more() -> None:
    node = raft(terms=(1, 1, 1))
    node.step(append(TWO, ONE, 2, previous=(2, 1), commit=5), 0)
    (reply,) = sent(drain(node), AppendEntriesReply)
    assert (reply.success, reply.match_index) == (True, 2)
    assert node.log.commit_index == 2


def test_a_conflict_is_cut_off_on_disk_before_new_entries_come() -> None:
    node = raft(terms=(1, 1, 1))
    node.step(append(TWO, ONE, 2, previous=(2, 1), terms=(2,)), 0)
    (ready,) = drain(node)
    assert (ready.truncate_from, [entry.index for entry in ready.entries]) == (3, [3])
    assert node.log.last_index == 3


def test_logs_that_parted_long_ago_meet_in_two_messages() -> None:
    follower = raft(TWO, terms=[1] * 5 + [2] * 50, hard_state=HardState(2))
    node = leader(commit=False, terms=[1] * 5 + [3] * 50, hard_state=HardState(3))
    node.tick(2_100)
    exchanged = 0
    while node.log.commit_index < node.log.last_index:
        for request in [m for m in sent(drain(node), AppendEntries) if m.to == TWO]:
            follower.step(request, 2_100)
            exchanged += 1
        for reply in sent(drain(follower), AppendEntriesReply):
            node.step(reply, 2_100)
        assert exchanged < 5
    assert follower.log.last_index == node.log.last_index


def test_an_observer_that_hears_nothing_knows_no_leader_and_is_no_candidate() -> None:
    node = raft(FOUR)
    known = []
    node.step(append(TWO, FOUR, 1), 0)
    for now_ms in (SETTINGS.election_timeout_ms / 2, 3 * SETTINGS.election_timeout_ms):
        node.tick(now_ms)
        known.append(node.leader)
    assert not sent(drain(node), RequestVote)
    node.step(append(TWO, FOUR, 1), 3_100)
    assert [*known, node.leader] == [TWO, None, TWO]
