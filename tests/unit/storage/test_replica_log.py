"""What replication asks of a log: batches taken over byte for byte, truncation, epochs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raystream.clock import ManualClock
from raystream.errors import InvalidArgument, InvalidRecord
from raystream.storage.epochs import Epochs
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate, Fresh
from tests.fakes.logs import DIRECTORY, append, commit, copy_batches, message, open_log, read_all
from tests.fakes.verify import verify


def leader_log(files: MemoryFiles, batches: int = 12, **config: Any) -> Log:
    """A log of three epochs and a producer, two records a batch."""
    log = open_log(files, **config)
    for number in range(batches):
        values = [b"%d-%d" % (number, row) for row in range(2)]
        append(log, message(values, producer=(7, 0, 2 * number)), epoch=3 + number // 5)
    return log


def test_a_follower_holds_the_leaders_bytes() -> None:
    for max_bytes in (1, 2_500, 1 << 30):
        leader = leader_log(MemoryFiles(), segment_bytes=4_000)
        files = MemoryFiles()
        follower = open_log(files, segment_bytes=5_000)
        while follower.end_offset < leader.end_offset:
            end = follower.append_as_follower(copy_batches(leader, follower.end_offset, max_bytes=max_bytes))
            assert end == follower.end_offset
        assert read_all(follower) == read_all(leader)
        for offset in range(leader.end_offset):
            (theirs,), (ours,) = (log.read(offset, max_bytes=1, end_offset=offset + 1) for log in (leader, follower))
            assert follower.read_bytes(ours) == leader.read_bytes(theirs)
        assert follower.epochs.starts == leader.epochs.starts == ((3, 0), (4, 10), (5, 20))
        again = message([b"11-0", b"11-1"], producer=(7, 0, 22))[1]
        assert isinstance(follower.producers.check(again), Duplicate)
        commit(follower)
        files.crash(random.Random(1))
        reopened = open_log(files, segment_bytes=5_000)
        assert read_all(reopened) == read_all(leader)
        assert reopened.epochs.starts == leader.epochs.starts


def test_batches_that_do_not_go_on_from_the_end_are_refused() -> None:
    leader = leader_log(MemoryFiles())
    follower = open_log(MemoryFiles())
    batches = copy_batches(leader, 0)
    follower.append_as_follower(batches[:6])
    for wrong in (batches[:1], batches[7:], [batches[6], batches[8]]):
        with pytest.raises(InvalidRecord, match=r"does not follow epoch [45] at offset 1"):
            follower.append_as_follower(wrong)
    append(follower, message([b"x"]), epoch=9)
    stale = leader_log(MemoryFiles(), 7)
    append(stale, message([b"y"]), epoch=4)
    with pytest.raises(InvalidRecord, match=r"of epoch 4 .* epoch 9"):
        follower.append_as_follower(copy_batches(stale, 13)[-1:])
    assert follower.end_offset == 13


def test_truncation_rewinds_offsets_epochs_and_producers() -> None:
    for segment_bytes in (2_000, 4_000, 1 << 20):
        files = MemoryFiles()
        log = leader_log(files, segment_bytes=segment_bytes)
        whole = read_all(log)
        assert log.truncate(15) == 14, "a batch that holds the offset goes as a whole"
        assert (log.end_offset, log.epochs.starts) == (14, ((3, 0), (4, 10)))
        assert read_all(log) == whole[:14]
        assert log.producers.check(message([b"6-0", b"6-1"], producer=(7, 0, 12))[1]) == Duplicate(
            12, 1_700_000_000_000
        )
        assert log.producers.check(message([b"new"], producer=(7, 0, 14))[1]) == Fresh()
        append(log, message([b"new"], producer=(7, 0, 14)), epoch=8)
        commit(log)
        for end in ("kill", "crash", "close"):
            if end == "kill":
                files.kill()
            elif end == "crash":
                files.crash(random.Random(3))
            else:
                log.close()
            log = open_log(files, segment_bytes=segment_bytes)
            assert read_all(log) == [*whole[:14], (14, b"new")]
            assert log.epochs.starts == ((3, 0), (4, 10), (8, 14))
            assert verify(log) == []


def test_truncation_to_nothing_and_of_nothing() -> None:
    files = MemoryFiles()
    log = leader_log(files, segment_bytes=2_000)
    assert log.truncate(24) == log.truncate(100) == 24
    assert log.truncate(0) == 0
    assert (log.start_offset, log.end_offset, log.epochs.starts, read_all(log)) == (0, 0, (), [])
    append(log, message([b"first"]), epoch=6)
    commit(log)
    files.kill()
    assert read_all(open_log(files)) == [(0, b"first")]


def test_what_is_published_is_not_truncated() -> None:
    log = leader_log(MemoryFiles(), 3)
    commit(log)
    append(log, message([b"x"]), epoch=4)
    with pytest.raises(InvalidArgument, match="offset 5 is published: the high watermark is 6"):
        log.truncate(5)
    assert log.truncate(6) == 6


def test_a_snapshot_of_what_was_cut_is_never_used_again() -> None:
    """Another batch may take the offset that the snapshot is named by."""
    files = MemoryFiles()
    clock = ManualClock()
    log = open_log(files, clock=clock)
    append(log, message([b"a"], producer=(7, 0, 0)))
    log.checkpoint()
    append(log, message([b"b"], producer=(7, 0, 1)))
    log.checkpoint()
    log.truncate(1)
    names = [name for name in files.listdir(DIRECTORY) if name.endswith(".producers")]
    assert names == [f"{1:020d}.producers"]
    append(log, message([b"c"], producer=(8, 0, 0)), epoch=4)
    log.flush()
    files.kill()
    files.corrupt(f"{DIRECTORY}/checkpoint", b"")
    log = open_log(files, clock=clock)
    assert isinstance(log.producers.check(message([b"c"], producer=(8, 0, 0))[1]), Duplicate)
    assert log.producers.check(message([b"b"], producer=(7, 0, 1))[1]) == Fresh()


def test_epochs_go_with_what_they_wrote() -> None:
    epochs = Epochs([(3, 0), (5, 10), (6, 10), (9, 40)])
    epochs.note(8, 45)
    epochs.note(12, 45)
    assert epochs.last == 12
    epochs.drop_before(20)
    assert list(epochs.starts) == [(6, 10), (9, 40), (12, 45)]
    epochs.cut(40)
    assert list(epochs.starts) == [(6, 10)]
    epochs.drop_before(10**6)
    assert list(epochs.starts) == [(6, 10)]
