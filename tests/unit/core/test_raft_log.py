"""The log in memory: matching, cutting, voters by entry, compaction, and what the shell is handed."""

from __future__ import annotations

import pytest

from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import NOTHING, Entry, Snapshot, Voter, first_snapshot

A, B, C = (Voter(node_id, f"disk {node_id}") for node_id in (1, 2, 3))


def entries(*terms: int, first: int = 2) -> tuple[Entry, ...]:
    return tuple(Entry(first + place, term, data=b"x") for place, term in enumerate(terms))


def log(*terms: int) -> RaftLog:
    return RaftLog(first_snapshot((A, B)), entries(*terms))


def terms(of: RaftLog) -> list[int | None]:
    return [of.term_at(index) for index in range(of.base_index + 1, of.last_index + 1)]


def drain(of: RaftLog) -> None:
    of.take_work()
    of.work_done()


def test_what_a_restart_found_is_durable_and_not_applied() -> None:
    found = log(1, 1, 2)
    assert (found.last_index, found.last_term, found.durable_index) == (4, 2, 4)
    assert (found.commit_index, found.applied_index) == (1, 1)
    assert not found.has_work


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (entries(1, 1, 1, 2), [1, 2]),  # the log reaches the snapshot and beyond, and agrees with it
        (entries(1, 2, 2, 2), []),  # it has another entry where the snapshot ends: it was about to be replaced
        (entries(1, 1), []),  # it ends before the snapshot
        (entries(1, first=4), [1]),  # it was compacted up to the snapshot
        (entries(1, first=5), []),  # it does not reach the snapshot
        ((), []),
    ],
)
def test_a_restart_keeps_entries_only_where_they_continue_the_snapshot(
    found: tuple[Entry, ...], kept: list[int]
) -> None:
    snapshot = Snapshot(3, 1, (A, B), b"state")
    assert terms(RaftLog(snapshot, found)) == kept


def test_entries_are_handed_over_once_and_durable_only_when_the_work_is_done() -> None:
    held = log()
    held.append(Entry(2, 1))
    assert held.take_work()[2] == (Entry(2, 1),)
    held.append(Entry(3, 1))
    assert held.durable_index == 1
    held.work_done()
    assert held.durable_index == 2
    assert held.take_work()[2] == (Entry(3, 1),)


def test_what_was_cut_off_during_a_sync_does_not_become_durable() -> None:
    held = log(1, 1)
    held.merge(entries(1, 1, first=4))
    held.take_work()
    held.merge(entries(2, first=3))
    held.work_done()
    assert held.durable_index == 2
    _, truncate_from, to_append, _ = held.take_work()
    assert truncate_from == 3
    assert to_append == entries(2, first=3)
    held.work_done()
    assert held.durable_index == 3


def test_what_was_never_handed_over_is_not_cut_from_the_disk() -> None:
    held = log(1)
    held.merge(entries(1, first=3))
    held.merge(entries(2, first=3))
    assert held.take_work()[1:3] == (None, entries(2, first=3))


def test_an_old_message_cuts_nothing_off() -> None:
    held = log(1, 1, 2, 2)
    held.merge(entries(1, 1))
    assert terms(held) == [1, 1, 2, 2]
    assert not held.has_work


def test_a_conflict_cuts_off_everything_after_it() -> None:
    held = log(1, 1, 2, 2)
    held.merge(entries(1, 1, 3))
    assert terms(held) == [1, 1, 3]
    assert held.durable_index == 3


def test_what_is_committed_is_never_cut_off() -> None:
    held = log(1, 1)
    held.commit_to(3)
    with pytest.raises(AssertionError, match="entry 3 conflicts, and 3 is committed"):
        held.merge(entries(2, first=3))


def test_commits_never_move_back_and_never_pass_the_end() -> None:
    held = log(1, 1)
    assert held.commit_to(3)
    assert not held.commit_to(2)
    assert held.commit_index == 3
    with pytest.raises(AssertionError):
        held.commit_to(4)


def test_the_election_restriction_compares_terms_before_lengths() -> None:
    held = log(1, 2)
    assert held.is_up_to_date(3, 2)
    assert held.is_up_to_date(2, 3)
    assert not held.is_up_to_date(2, 2)
    assert not held.is_up_to_date(9, 1)


def test_voters_count_with_their_entry_and_no_longer_once_it_is_cut_off() -> None:
    held = log(1)
    held.append(Entry(3, 1, voters=(A, B, C)))
    assert (held.voters, held.voters_before, held.voters_index) == ((A, B, C), (A, B), 3)
    held.merge(entries(2, first=3))
    assert (held.voters, held.voters_index) == ((A, B), 1)
    held.append(Entry(4, 2, voters=(A,)))
    held.commit_to(4)
    assert held.voters_before == (A,)


def test_compaction_keeps_the_voters_of_its_place_and_the_entries_asked_for() -> None:
    held = log(1, 1)
    held.append(Entry(4, 2, voters=(A, B, C)))
    held.append(Entry(5, 2, data=b"x"))
    held.commit_to(5)
    drain(held)
    assert held.compact(3, b"three", 0) == Snapshot(3, 1, (A, B), b"three")
    assert (held.voters, held.base_index) == ((A, B, C), 3)
    assert held.compact(5, b"five", 1) == Snapshot(5, 2, (A, B, C), b"five")
    assert (held.base_index, held.last_index, held.term_at(4), held.term_at(3)) == (4, 5, 2, None)


def test_only_what_is_applied_can_be_compacted() -> None:
    held = log(1, 1)
    held.commit_to(3)
    with pytest.raises(AssertionError):
        held.compact(3, b"", 0)


def test_a_snapshot_replaces_everything() -> None:
    held = log(1, 1, 1)
    held.install(Snapshot(9, 4, (A, B, C), b"nine"))
    assert (held.last_index, held.last_term, held.commit_index, held.voters) == (9, 4, 9, (A, B, C))
    assert held.durable_index == 0
    held.append(Entry(10, 4))
    assert held.take_work() == (Snapshot(9, 4, (A, B, C), b"nine"), None, (Entry(10, 4),), ())
    held.work_done()
    assert (held.durable_index, held.applied_index) == (10, 9)


def test_a_sync_from_before_a_snapshot_makes_nothing_of_it_durable() -> None:
    held = log(1)
    held.append(Entry(3, 1))
    held.take_work()
    held.install(Snapshot(9, 4, (A, B), b"nine"))
    held.work_done()
    assert held.durable_index == 0
    drain(held)
    assert held.durable_index == 9


def test_batches_are_bounded_and_never_empty() -> None:
    held = log(1, 1, 1)
    size_bytes = held.size_bytes(2, 3)
    assert [entry.index for entry in held.batch(2, 1)] == [2]
    assert [entry.index for entry in held.batch(2, 2 * size_bytes)] == [2, 3]
    assert [entry.index for entry in held.batch(2, 1 << 20)] == [2, 3, 4]
    assert held.batch(5, 1 << 20) == ()


def test_the_hint_skips_whole_terms() -> None:
    held = log(1, 1, 2, 2, 4, 4)
    assert held.last_index_not_after(3, 7) == 5
    assert held.last_index_not_after(4, 100) == 7
    assert held.last_index_not_after(0, 7) == 1


def test_an_empty_log_knows_no_voters() -> None:
    empty = RaftLog(NOTHING)
    assert (empty.voters, empty.last_index, empty.term_at(0)) == ((), 0, 0)
