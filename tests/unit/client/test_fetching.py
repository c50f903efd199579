"""How batches reach the consumer: mapped, copied or as bytes; damaged, gone, late, or too many."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystream import messages as m
from raystream.client import buffer, fetched, fetcher, records, session
from raystream.client.fetched import SpanGone, read_span
from raystream.errors import (
    ActorLost,
    CorruptBatch,
    FencedLeaderEpoch,
    LogTruncated,
    NotLeader,
    OffsetOutOfRange,
    RaystreamError,
    TopicNotFound,
)
from raystream.types import TopicPartition
from tests.fakes.log import FakeCluster, FakePartition, eventually

BIG = [bytes([65 + n % 26]) * 1000 for n in range(400)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path) as cluster:
        cluster.create("t")
        yield cluster


def part(cluster: FakeCluster) -> FakePartition:
    return cluster.topics["t"].partitions[0]


def values(cluster: FakeCluster, count: int, **settings: Any) -> list[bytes]:
    found: list[bytes] = []
    with cluster.consumer(**settings) as consumer:
        for record in consumer:
            found.append(record.value)
            if len(found) == count:
                return found
    raise AssertionError("the loop ended by itself")


@pytest.mark.parametrize("settings", [{}, {"mmap": False}, {"check_crcs": False}])
def test_what_was_written_is_read(cluster: FakeCluster, settings: dict[str, Any]) -> None:
    cluster.append("t", BIG)
    cluster.append("t", [b"small"])
    assert values(cluster, 401, **settings) == [*BIG, b"small"]
    assert part(cluster).fetches[0].mapped is settings.get("mmap", True)


def test_compressed_batches(cluster: FakeCluster) -> None:
    cluster.append("t", BIG, compression="zstd")
    cluster.append("t", BIG, compression="lz4")
    assert values(cluster, 800) == BIG + BIG


def test_a_reader_on_another_node_gets_bytes(tmp_path: Path) -> None:
    with FakeCluster(tmp_path, node_id="elsewhere") as cluster:
        cluster.create("t")
        cluster.append("t", BIG)
        assert values(cluster, 400) == BIG
        assert not any(fetch.mapped for fetch in part(cluster).fetches)


def test_rows_below_the_offset_are_cut_off(cluster: FakeCluster) -> None:
    cluster.append("t", [b"0", b"1", b"2"])
    assert values(cluster, 2, start={0: 1}) == [b"1", b"2"]


def test_control_batches_take_an_offset_and_give_no_record(cluster: FakeCluster) -> None:
    cluster.append("t", [b"0"])
    cluster.append_control("t")
    cluster.append("t", [b"2"])
    with cluster.consumer(group="g") as consumer:
        records = iter(consumer)
        assert [(r.offset, r.value) for r in (next(records), next(records))] == [(0, b"0"), (2, b"2")]
        cluster.append_control("t")
        assert consumer.poll(0.3) is None
        eventually(lambda: cluster.committed() == 4)


# Mapping ------------------------------------------------------------------------------------------------------------


def test_a_file_that_vanished_is_fetched_again(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.append("t", BIG)
    partition = part(cluster)
    partition.span_path = str(tmp_path / "gone.log")
    with cluster.consumer() as consumer:
        eventually(lambda: len(partition.fetches) >= 2)
        partition.span_path = None
        assert next(iter(consumer)).value == BIG[0]
        assert all(fetch.mapped for fetch in partition.fetches[:2]), "ENOENT means: fetch again"


def test_a_file_that_stays_away_is_read_as_bytes(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.append("t", BIG)
    part(cluster).span_path = str(tmp_path / "gone.log")
    assert values(cluster, 400) == BIG
    assert part(cluster).fetches[-1].mapped is False


def test_an_unreadable_path_is_read_as_bytes(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.append("t", BIG)
    (tmp_path / "file").touch()
    part(cluster).span_path = str(tmp_path / "file" / "below")
    assert values(cluster, 400) == BIG
    assert part(cluster).fetches[1].mapped is False


def test_a_file_that_was_replaced_by_another(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.append("t", BIG)
    other = tmp_path / "other.log"
    other.write_bytes(os.urandom(part(cluster).size))
    part(cluster).span_path = str(other)
    assert values(cluster, 400) == BIG


def test_a_span_is_never_read_past_its_length(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 4096)
    for position, length in [(0, 10), (4097, 300_000), (1_000_000, 48_576)]:
        data = read_span(m.Span(str(path), position, length, 1))
        assert bytes(data) == path.read_bytes()[position : position + length]
    with pytest.raises(SpanGone, match="ends before byte"):
        read_span(m.Span(str(path), 1_000_000, 48_577, 1))


def test_mappings_are_bounded_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 300_000)
    before = fetched._LiveMappings.count
    monkeypatch.setattr(fetched, "MAX_LIVE_MAPPINGS", before + 1)
    span = m.Span(str(path), 0, 300_000, 1)
    mapped, copied = read_span(span), read_span(span)
    assert isinstance(mapped, memoryview) and isinstance(copied, bytes)
    assert fetched._LiveMappings.count == before + 1
    del mapped
    assert fetched._LiveMappings.count == before


# Damage -------------------------------------------------------------------------------------------------------------


def _flip(partition: FakePartition, batch: int, *, at: int) -> None:
    stored = partition.batches[batch]
    data = bytearray(stored.data)
    data[at] ^= 0x40
    stored.data = bytes(data)
    assert partition.path is not None
    with partition.path.open("r+b") as file:
        file.seek(stored.position)
        file.write(data)


@pytest.mark.parametrize("settings", [{}, {"mmap": False}])
def test_a_flipped_bit_is_named_and_can_be_stepped_over(cluster: FakeCluster, settings: dict[str, Any]) -> None:
    cluster.append("t", [b"good"] * 3)
    cluster.append("t", [b"bad" * 50] * 2)
    cluster.append("t", [b"after"])
    _flip(part(cluster), 1, at=-200)
    with cluster.consumer(**settings) as consumer:
        records = iter(consumer)
        assert [next(records).value for _ in range(3)] == [b"good"] * 3
        for _ in range(2):
            with pytest.raises(CorruptBatch, match=r"t-0 at offset 3: .*CRC.*consumer.seek\('t', 0, 5\)") as caught:
                consumer.poll(5)
            assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("t", 0, 3)
        assert consumer.position("t", 0) == 3
        consumer.seek("t", 0, 5)
        assert next(iter(consumer)).value == b"after"


def test_a_damaged_header_is_refused(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a"])
    cluster.append("t", [b"b"])
    _flip(part(cluster), 0, at=0)
    with cluster.consumer() as consumer, pytest.raises(CorruptBatch, match="t-0 from offset 0 on"):
        consumer.poll(5)


def test_without_checks_only_the_structure_is_trusted(cluster: FakeCluster) -> None:
    cluster.append("t", [b"x" * 500])
    _flip(part(cluster), 0, at=-200)
    assert len(values(cluster, 1, check_crcs=False)[0]) == 500


# Errors -------------------------------------------------------------------------------------------------------------


def test_errors_that_pass_never_reach_the_user(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a"])
    part(cluster).errors.extend([NotLeader("moved"), ActorLost("died"), FencedLeaderEpoch("old")])
    with cluster.consumer(start={0: 0}) as consumer:
        assert next(iter(consumer)).value == b"a"


def test_a_topic_that_is_missing_is_an_error_with_the_remedy(cluster: FakeCluster) -> None:
    with pytest.raises(TopicNotFound, match="create_topic"):
        cluster.consumer("nowhere")


def test_an_offset_that_is_gone_is_reset_with_a_warning(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    how = {"group": "g", "start": "earliest", "on_offsets_lost": "warn"}
    cluster.append("t", [b"%d" % n for n in range(10)])
    part(cluster).start_offset = 6
    cluster.coordinator_port.offsets["t", 0] = 2
    with caplog.at_level(logging.WARNING, "raystream"), cluster.consumer(**how) as consumer:
        assert next(iter(consumer)).offset == 6
    assert "t-0: offset 2 is no longer there: 4 records were lost; going on at 6" in caplog.text


def test_a_position_past_the_end_is_reported_once_and_reading_goes_on_as_start_says(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a"])
    with cluster.consumer(start={0: 50}) as consumer:
        with pytest.raises(OffsetOutOfRange, match="offset 50 is not there: the log ends before it; going on at 1"):
            next(iter(consumer))
        eventually(lambda: consumer.position("t", 0) == 1)
        cluster.append("t", [b"b"])
        assert next(iter(consumer)).value == b"b"


def test_records_that_were_read_and_taken_back_are_reported_and_reading_goes_on_where_the_logs_part(
    cluster: FakeCluster,
) -> None:
    cluster.append("t", [b"%d" % n for n in range(6)])
    with cluster.consumer(start="earliest") as consumer:
        assert [next(iter(consumer)).offset for _ in range(6)] == [*range(6)]
        eventually(lambda: part(cluster).fetches[-1].last_epoch >= 0)
        part(cluster).errors.append(OffsetOutOfRange("no", diverging_offset=3))
        with pytest.raises(LogTruncated, match="holds of what was read what lies below 3") as raised:
            next(iter(consumer))
        truncated = pickle.loads(pickle.dumps(raised.value))
        assert (truncated.topic, truncated.partition, truncated.position, truncated.next) == ("t", 0, 6, 3)
        assert next(iter(consumer)).offset == 3


def test_a_topic_that_is_deleted_under_who_reads_it_alone_is_an_error(cluster: FakeCluster) -> None:
    with cluster.consumer("t", start="earliest") as consumer:
        eventually(lambda: consumer.assignment())
        del cluster.topics["t"]
        cluster.routing.forget("t")
        with pytest.raises(TopicNotFound, match="there is no topic 't'"):
            consumer.poll(10)


def test_a_partition_that_nobody_leads_does_not_keep_the_others_from_being_read(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "FIRST_OFFSET_MS", 100.0)
    monkeypatch.setattr(session, "TOPICS_AGAIN_MS", 20.0)
    cluster.create("t", 2)
    zero = cluster.append("t", [b"zero"], 0)
    cluster.append("t", [b"one"], 1)
    zero.errors.extend([NotLeader("it is being elected")] * 10_000)
    with cluster.consumer("t", start="earliest") as consumer:
        assert next(iter(consumer)).value == b"one"
        assert "t-0 is not read yet: partition t-0 gave no answer within 100 ms" in caplog.text
        zero.errors.clear()
        assert next(iter(consumer)).value == b"zero"


def test_after_a_seek_nothing_is_said_of_what_was_read(cluster: FakeCluster) -> None:
    cluster.append("t", [b"%d" % n for n in range(6)])
    with cluster.consumer(start="earliest") as consumer:
        assert next(iter(consumer)).offset == 0
        consumer.seek("t", 0, 4)
        assert next(iter(consumer)).offset == 4
        found = [fetch for fetch in part(cluster).fetches if fetch.offset == 4]
        assert found and found[0].last_epoch == -1


def test_what_is_buffered_is_bounded(cluster: FakeCluster) -> None:
    for _ in range(40):
        cluster.append("t", [b"x" * 1000] * 64)
    with cluster.consumer(max_buffered_bytes=512 * 1024, max_fetch_bytes=64 * 1024) as consumer:
        slot = consumer._session.assigned()[TopicPartition("t", 0)]
        eventually(lambda: slot.buffered_bytes > 300 * 1024)
        seen, peak = 0, 0
        for batch in consumer.batches():
            peak = max(peak, slot.buffered_bytes)
            seen += len(batch)
            if seen == 40 * 64:
                break
        assert peak <= 600 * 1024


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.append("t", [b"old"] * 3)
    with caplog.at_level(logging.WARNING, "raystream"), cluster.consumer(start="latest") as consumer:
        cluster.create("t")
        cluster.append("t", [b"new"])
        cluster.routing.forget("t")
        assert next(iter(consumer)).value == b"new"
    assert "deleted and created again; going on at 0" in caplog.text


def test_an_interrupt_while_rows_are_decoded_loses_nothing(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.append("t", [b"a", b"b"])
    with cluster.consumer() as consumer:
        for module, name in [(buffer, "decoded"), (records, "timestamps")]:
            with monkeypatch.context() as patch:
                patch.setattr(module, name, _interrupted)
                with pytest.raises(KeyboardInterrupt):
                    next(iter(consumer))
        assert [record.value for _, record in zip(range(2), consumer, strict=False)] == [b"a", b"b"]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_failure_of_our_own_does_not_leave_the_user_waiting(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fetcher, "batches_from", broken)
    cluster.append("t", [b"a"])
    with cluster.consumer() as consumer, pytest.raises(RaystreamError, match="ZeroDivisionError"):
        consumer.poll(10)
