"""A leading replica over a disk in memory: what is synced before whom it tells, and in which order."""

from __future__ import annotations

import errno
import random
import threading
import time
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import leading as module
from raystream.actors.leading import Append
from raystream.actors.replica import Replica
from raystream.actors.writer import Ticket
from raystream.clock import ManualClock
from raystream.errors import DiskFull, LogLost, OutOfOrderSequence, StorageError
from raystream.schema import RAW_SCHEMA
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.logs import DIRECTORY, TOPIC_ID, message, open_log, read_all
from tests.fakes.replicas import Deaf


def opened(files: MemoryFiles, clock: ManualClock | None = None, *, before: bool = False, **config: Any) -> Replica:
    spec = m.ReplicaSpec(
        topic="t",
        topic_id=TOPIC_ID,
        partition=0,
        directory=DIRECTORY,
        leader_epoch=3,
        incarnation=1,
        config=config,
        schemas=(RAW_SCHEMA.serialize().to_pybytes(),),
        opened=before,
    )
    replica = Replica(spec, files, clock or ManualClock(), Deaf())
    replica.open()
    return replica


def offered(replica: Replica, values: list[bytes], producer: tuple[int, int, int] = (-1, -1, -1)) -> Ticket[Append]:
    """A batch as the actor offers it."""
    request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=3)
    ticket = Ticket(replica.check(request, message(values, producer=producer)[0]))
    replica.offer(ticket)
    return ticket


def test_whoever_is_answered_survives_a_crash_of_the_machine() -> None:
    for seed in range(20):
        files = MemoryFiles()
        replica = opened(files)
        rng = random.Random(seed)
        answered = []
        for number in range(30):
            ticket = offered(replica, [b"%d" % number])
            if rng.random() < 0.4:
                replica.commit()
            if ticket.settled:
                answered.append((ticket.wait(0).base_offset, b"%d" % number))
        files.crash(rng)
        stored = read_all(open_log(files))
        assert set(answered) <= set(stored), f"seed {seed}: an acknowledged record is lost"


def test_a_round_tells_its_callers_and_readers_after_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches: the first are synced and answered while the others have still to be written."""
    monkeypatch.setattr(module, "GROUP_COMMIT_BYTES", 3_000)
    replica = opened(MemoryFiles())
    tickets = [offered(replica, [b"x" * 1_000], producer=(9, 0, number)) for number in range(6)]
    settled = [ticket.settled for ticket in tickets]
    assert settled == sorted(settled, reverse=True)
    assert any(settled) and not all(settled)
    assert replica.status().high_watermark == sum(settled)
    replica.commit()
    assert [ticket.wait(0).base_offset for ticket in tickets] == list(range(6))


def test_an_early_batch_is_kept_for_its_turn_and_released_in_order() -> None:
    replica = opened(MemoryFiles())
    tickets = {number: offered(replica, [b"%d" % number], producer=(9, 0, number)) for number in (2, 1)}
    replica.commit()
    assert not any(ticket.settled for ticket in tickets.values())
    tickets[0] = offered(replica, [b"0"], producer=(9, 0, 0))
    replica.commit()
    assert [tickets[number].wait(0).base_offset for number in range(3)] == [0, 1, 2]
    again = offered(replica, [b"1"], producer=(9, 0, 1))
    replica.commit()
    reply = again.wait(0)
    assert reply.duplicate and reply.base_offset == 1
    assert replica.status().end_offset == 3


def test_an_early_batch_whose_turn_never_comes_is_refused() -> None:
    clock = ManualClock()
    replica = opened(MemoryFiles(), clock)
    early = offered(replica, [b"1"], producer=(9, 0, 1))
    replica.commit()
    clock.advance(int(module.REORDER_WAIT_MS) + 1)
    replica.commit()
    with pytest.raises(OutOfOrderSequence):
        early.wait(0)


def test_a_failed_sync_answers_nobody_and_ends_the_actor() -> None:
    files = MemoryFiles()
    replica = opened(files)
    ticket = offered(replica, [b"a"])
    files.fail_at(2, errno.EIO)  # the write, then the sync
    with pytest.raises(StorageError):
        replica.commit()
    with pytest.raises(StorageError):
        ticket.wait(0)


def test_a_full_disk_refuses_the_batch_and_the_replica_goes_on() -> None:
    files = MemoryFiles()
    replica = opened(files)
    first = offered(replica, [b"a"])
    replica.commit()
    files.capacity_bytes = files.capacity_bytes - files.free_bytes(DIRECTORY)
    refused = offered(replica, [b"b" * 5_000_000])
    replica.commit()
    with pytest.raises(DiskFull):
        refused.wait(0)
    files.capacity_bytes = 1 << 50
    later = offered(replica, [b"c"])
    replica.commit()
    assert (first.wait(0).base_offset, later.wait(0).base_offset) == (0, 1)


def test_a_waiting_reader_wakes_when_the_record_is_published_not_before() -> None:
    replica = opened(MemoryFiles())
    got: list[m.FetchReply] = []
    request = m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=0, leader_epoch=3, max_wait_ms=10_000)
    reader = threading.Thread(target=lambda: got.append(replica.fetch(request, 8)))
    reader.start()
    offered(replica, [b"a"])
    time.sleep(0.1)
    assert not got
    replica.commit()
    reader.join(5)
    assert got[0].high_watermark == 1 and len(got[0].chunks) == 1


def test_a_replica_that_was_served_before_does_not_begin_empty() -> None:
    files = MemoryFiles()
    with pytest.raises(LogLost, match=f"{DIRECTORY} is gone or empty.*put it back.*--unclean"):
        opened(files, before=True)
    assert DIRECTORY not in files.directories("data"), "what is put back must find its place free"
    files.makedirs(DIRECTORY)
    with pytest.raises(LogLost):
        opened(files, before=True)


def test_a_replica_without_records_is_found_again_after_a_crash() -> None:
    for seed in range(10):
        files = MemoryFiles()
        opened(files)
        files.crash(random.Random(seed))
        assert opened(files, before=True).high_watermark == 0


def test_a_new_replica_that_cannot_leave_a_trace_is_not_served() -> None:
    files = MemoryFiles()
    files.capacity_bytes = 0
    with pytest.raises(DiskFull):
        opened(files)
