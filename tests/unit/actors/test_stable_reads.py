"""What a replica shows to readers of what is committed, and what it takes from transactional producers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raystream import batch as b
from raystream import messages as m
from raystream.actors.leading import Append
from raystream.actors.replica import Replica
from raystream.actors.writer import Ticket
from raystream.clock import ManualClock
from raystream.errors import FencedProducer, InvalidRecord, OffsetOutOfRange
from raystream.schema import RAW_SCHEMA
from raystream.storage.epochs import Epochs
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.logs import DIRECTORY, TOPIC_ID, Message, marker, message
from tests.fakes.replicas import Deaf


@pytest.fixture
def replica() -> Replica:
    return opened(MemoryFiles())


def opened(files: MemoryFiles) -> Replica:
    spec = m.ReplicaSpec(
        topic="t",
        topic_id=TOPIC_ID,
        partition=0,
        directory=DIRECTORY,
        leader_epoch=3,
        incarnation=1,
        config={},
        schemas=(RAW_SCHEMA.serialize().to_pybytes(),),
    )
    made = Replica(spec, files, ManualClock(), Deaf())
    made.open()
    return made


def append(replica: Replica, batch: Message) -> Any:
    request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=3)
    return settle(replica, replica.check(request, batch[0]))


def settle(replica: Replica, work: Append) -> Any:
    ticket = Ticket(work)
    replica.offer(ticket)
    replica.commit()
    return ticket.wait(0)


def write(replica: Replica, producer: int, epoch: int, sequence: int = 0) -> Any:
    attributes = b.ATTR_TRANSACTIONAL
    return append(replica, message([b"x"], producer=(producer, epoch, sequence), attributes=attributes))


def end(replica: Replica, producer: int, epoch: int, *, commits: bool) -> Any:
    request = m.WriteMarkerRequest(
        topic_id=TOPIC_ID, partition=0, producer_id=producer, producer_epoch=epoch, commit=commits, leader_epoch=3
    )
    return settle(replica, replica.marker(request))


def fetch(replica: Replica, offset: int = 0, *, committed: bool = True, wait_ms: int = 0) -> m.FetchReply:
    request = m.FetchRequest(
        topic_id=TOPIC_ID, partition=0, offset=offset, committed=committed, max_wait_ms=wait_ms, leader_epoch=3
    )
    return replica.fetch(request, 8)


def offsets(reply: m.FetchReply) -> list[int]:
    return [header.base_offset for chunk in reply.chunks for header, _ in b.walk(chunk)]


def test_a_reader_of_what_is_committed_stops_before_the_first_open_transaction(replica: Replica) -> None:
    append(replica, message([b"plain"]))
    write(replica, 1, 0)
    append(replica, message([b"plain"]))
    reply = fetch(replica)
    assert offsets(reply) == [0] and (reply.last_stable_offset, reply.high_watermark) == (1, 3)
    assert offsets(fetch(replica, committed=False)) == [0, 1, 2]
    assert offsets(fetch(replica, 2)) == [], "past what is stable there is nothing yet, which is no error"
    end(replica, 1, 1, commits=True)
    assert offsets(fetch(replica)) == [0, 1, 2, 3] and fetch(replica).aborted == ()


def test_what_was_aborted_is_named_to_who_asked_for_what_is_committed(replica: Replica) -> None:
    write(replica, 1, 0)
    write(replica, 2, 0)
    end(replica, 1, 1, commits=False)
    end(replica, 2, 1, commits=True)
    write(replica, 1, 1)
    end(replica, 1, 2, commits=False)
    assert fetch(replica).aborted == ((1, 0, 2), (1, 4, 5))
    assert fetch(replica, 3).aborted == ((1, 4, 5),)
    assert fetch(replica, committed=False).aborted == ()


def test_of_many_only_those_in_what_is_served_are_named(replica: Replica) -> None:
    for epoch in range(100):
        write(replica, 1, epoch)
        end(replica, 1, epoch + 1, commits=False)
    request = m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=20, committed=True, max_bytes=1)
    reply = replica.fetch(request, 8)
    assert offsets(reply) == [20] and reply.aborted == ((1, 20, 21),)


def test_a_waiting_reader_hears_of_the_marker(replica: Replica) -> None:
    write(replica, 1, 0)
    replies: list[m.FetchReply] = []
    reader = threading.Thread(target=lambda: replies.append(fetch(replica, wait_ms=10_000)))
    reader.start()
    append(replica, message([b"plain"]))
    end(replica, 1, 1, commits=True)
    reader.join(10)
    assert offsets(replies[0]) == [0, 1, 2]


def test_the_latest_offset_is_the_stable_one_for_who_reads_what_is_committed(replica: Replica) -> None:
    append(replica, message([b"plain"]))
    write(replica, 1, 0)

    def latest(timestamp_ms: int, *, committed: bool) -> int:
        request = m.ListOffsetsRequest(
            topic_id=TOPIC_ID, partition=0, timestamp_ms=timestamp_ms, committed=committed, leader_epoch=3
        )
        return replica.list_offset(request).offset

    assert (latest(m.LATEST_TIMESTAMP, committed=True), latest(m.LATEST_TIMESTAMP, committed=False)) == (1, 2)
    assert (latest(2**40, committed=True), latest(2**40, committed=False)) == (1, 2)


def test_late_batches_of_a_transaction_that_has_ended_are_refused(replica: Replica) -> None:
    write(replica, 1, 0)
    end(replica, 1, 1, commits=False)
    with pytest.raises(FencedProducer):
        write(replica, 1, 0, 1)
    assert replica.log.end_offset == 2


def test_a_marker_that_is_repeated_or_late_changes_nothing(replica: Replica) -> None:
    write(replica, 1, 0)
    end(replica, 1, 1, commits=True)
    assert end(replica, 1, 1, commits=True).duplicate
    write(replica, 1, 1)
    assert end(replica, 1, 1, commits=True).duplicate
    assert replica.log.end_offset == 3 and fetch(replica).last_stable_offset == 2, "the next one is open still"


def test_only_coordinators_write_control_batches(replica: Replica) -> None:
    with pytest.raises(InvalidRecord, match=r"may not set|rows"):
        append(replica, marker(1, 1, commits=True))
    with pytest.raises(InvalidRecord, match="may not set"):
        append(replica, message([b"x"], producer=(1, 0, 0), attributes=b.ATTR_TRANSACTIONAL | b.ATTR_COMMIT))
    with pytest.raises(InvalidRecord, match="may not set"):
        append(replica, message([b"x"], attributes=b.ATTR_TRANSACTIONAL))


def test_a_leader_that_starts_again_knows_what_is_open() -> None:
    files = MemoryFiles()
    replica = opened(files)
    append(replica, message([b"plain"]))
    write(replica, 1, 0)
    replica.close()
    replica = opened(files)
    assert fetch(replica).last_stable_offset == 1
    end(replica, 1, 1, commits=False)
    assert fetch(replica).last_stable_offset == 3 and fetch(replica).aborted == ((1, 1, 2),)


def test_a_log_that_parts_from_what_was_read_says_where(replica: Replica) -> None:
    for sequence in range(4):
        append(replica, message([b"x"], producer=(1, 0, sequence)))
    replica.log.epochs = Epochs([(1, 1), (3, 2)])

    def fetch(offset: int, last_epoch: int) -> m.FetchReply:
        request = m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=offset, last_epoch=last_epoch)
        return replica.fetch(request, 0)

    for offset, epoch in ((4, 3), (2, 1), (4, 0), (4, -1), (3, 3)):
        fetch(offset, epoch)  # epoch 0 lies before the log: nobody can tell
    for offset, epoch, parted in ((4, 2, 2), (4, 1, 2), (9, 3, 4)):
        with pytest.raises(OffsetOutOfRange, match=f"in leader epoch {epoch}, of which") as raised:
            fetch(offset, epoch)
        assert raised.value.diverging_offset == parted
