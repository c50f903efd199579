"""What a reader of what is committed makes of the bytes of a fetch: aborted batches and markers are left out."""

from __future__ import annotations

import pytest

from raystream import batch as b
from raystream.client.fetched import batches_from
from raystream.config import ConsumerConfig, build
from raystream.errors import InvalidConfig
from raystream.schema import RAW_SCHEMA
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.logs import append, marker, message, open_log


def written(producer: int, epoch: int, *values: bytes) -> tuple[memoryview, b.BatchHeader]:
    return message(values, producer=(producer, epoch, 0), attributes=b.ATTR_TRANSACTIONAL)


@pytest.fixture
def log() -> Log:
    """Offsets: 1 and 2 aborted, 3 to 5 plain, 6 committed, and markers at 0 (of nothing), 7, 8."""
    made = open_log(MemoryFiles())
    append(
        made,
        marker(9, 1, commits=True),
        written(1, 0, b"aborted", b"aborted"),
        message([b"plain"] * 3, producer=(3, 0, 0)),
        written(2, 0, b"committed"),
        marker(1, 1, commits=False),
        marker(2, 1, commits=True),
    )
    return made


def values(log: Log, aborted: tuple[tuple[int, int, int], ...], offset: int = 0) -> list[bytes]:
    (span,) = log.read(0, max_bytes=1 << 20, end_offset=9)
    run = batches_from(log.read_bytes(span), RAW_SCHEMA, offset, aborted=aborted)
    assert run is not None and run.next_offset == 9, "positions move past all of it"
    return [value for _, message in run.entries for value in b.decode(message, RAW_SCHEMA)["value"].to_pylist()]


def test_aborted_batches_and_markers_are_left_out(log: Log) -> None:
    entries = tuple((*entry,) for entry in log.producers.aborted.entries)
    assert entries == ((1, 1, 7),)
    assert values(log, entries) == [b"plain"] * 3 + [b"committed"]


def test_without_that_all_records_are_seen_and_no_markers(log: Log) -> None:
    assert values(log, ()) == [b"aborted"] * 2 + [b"plain"] * 3 + [b"committed"]


def test_an_abort_concerns_its_producer_and_its_range_alone(log: Log) -> None:
    assert values(log, ((1, 2, 7), (2, 0, 5), (3, 0, 8))) == values(log, ())


def test_a_reader_may_begin_in_the_middle(log: Log) -> None:
    assert values(log, ((1, 1, 7),), offset=8) == []


def test_committed_is_what_is_read_unless_asked_otherwise() -> None:
    assert ConsumerConfig().committed
    assert not build(ConsumerConfig, {"isolation": "read_uncommitted"}).committed
    with pytest.raises(InvalidConfig, match="read_committed"):
        build(ConsumerConfig, {"isolation": "dirty"})
