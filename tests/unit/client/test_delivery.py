"""At least once: which records a group has committed after each way in which a consumer can end."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Iterator

import pytest

from raystream.client.consumer import Consumer
from raystream.client.fetched import Fetched, join_head
from raystream.errors import CoordinatorNotAvailable, InvalidArgument, InvalidRecord, UnknownMember
from raystream.types import Record
from tests.fakes.log import FakeCluster, eventually
from tests.fakes.logs import SCHEMAS


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t")
        cluster.append("t", [b"0", b"1", b"2", b"3", b"4"])
        cluster.append("t", [b"5", b"6"])
        yield cluster


def quiet(cluster: FakeCluster) -> Consumer:
    """A member that commits at its end only."""
    return cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False)


def take(consumer: Consumer, count: int) -> list[Record]:
    records: list[Record] = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    return records


def test_break_then_close_counts_the_record_in_hand(cluster: FakeCluster) -> None:
    consumer = quiet(cluster)
    assert [r.value for r in take(consumer, 3)] == [b"0", b"1", b"2"]
    consumer.close()
    assert cluster.committed() == 3


def test_an_exception_in_with_leaves_the_record_in_hand_uncommitted(cluster: FakeCluster) -> None:
    def handle() -> None:
        with quiet(cluster) as consumer:
            for record in consumer:
                if record.value == b"3":
                    raise RuntimeError("bad")

    with pytest.raises(RuntimeError, match="bad"):
        handle()
    assert cluster.committed() == 3


def test_close_in_finally_sees_the_exception(cluster: FakeCluster) -> None:
    consumer = quiet(cluster)

    def interrupted() -> None:
        try:
            take(consumer, 2)
            raise KeyboardInterrupt
        finally:
            consumer.close()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cluster.committed() == 1


def test_leaving_with_cleanly_counts(cluster: FakeCluster) -> None:
    with quiet(cluster) as consumer:
        take(consumer, 2)
    assert cluster.committed() == 2


def test_a_batch_counts_when_the_next_is_asked_for(cluster: FakeCluster) -> None:
    consumer = cluster.consumer(group="g")
    first = consumer.poll(5)
    assert first is not None and len(first) == 7
    time.sleep(0.2)  # several automatic commits may pass: the batch in hand is in none of them
    assert cluster.committed() in (None, 0)
    cluster.append("t", [b"7", b"8"])
    second = consumer.poll(5)
    assert second is not None and second.offsets == range(7, 9)
    assert cluster.committed() == 7
    consumer.close()
    assert cluster.committed() == 9


def test_the_next_batch_waits_until_the_one_before_is_committed(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000) as consumer:
        assert consumer.poll(5) is not None
        cluster.append("t", [b"7", b"8"])
        cluster.coordinator_port.commits_paused = True
        assert consumer.poll(0.3) is None
        cluster.coordinator_port.commits_paused = False
        second = consumer.poll(5)
        assert second is not None and second.offsets == range(7, 9)
        assert cluster.committed() == 7


def test_a_commit_that_failed_is_tried_again_and_the_batch_comes(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000) as consumer:
        assert consumer.poll(5) is not None
        cluster.append("t", [b"7"])
        cluster.coordinator_port.commit_errors += [UnknownMember("who?"), CoordinatorNotAvailable("starting")]
        second = consumer.poll(5)
        assert second is not None and second.offsets == range(7, 8)


def test_a_seek_waits_for_no_commit(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000) as consumer:
        assert consumer.poll(5) is not None
        cluster.coordinator_port.commits_paused = True
        assert consumer.poll(0.1) is None
        consumer.seek("t", 0, 2)
        again = consumer.poll(5)
        assert again is not None and again.offsets == range(2, 7)
        cluster.coordinator_port.commits_paused = False


@pytest.mark.parametrize("each_batch", [True, False])
def test_a_batch_committed_by_hand_is_not_taken_back(cluster: FakeCluster, each_batch: bool) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=50, commit_each_batch=each_batch) as consumer:
        batch = consumer.poll(5)
        assert batch is not None
        consumer.commit(batch)
        time.sleep(0.3)
        assert cluster.committed() == 7


def test_runs_of_two_schemas_are_not_joined() -> None:
    queue: deque[Fetched] = deque()
    for first, schema in ((0, SCHEMAS[0]), (2, SCHEMAS[0]), (4, SCHEMAS[1]), (6, SCHEMAS[1])):
        queue.append(Fetched(schema, [], first, first + 2, 10, 8))
    join_head(queue, 1 << 20)
    assert [(run.first_offset, run.next_offset, run.size_bytes) for run in queue] == [
        (0, 4, 20),
        (4, 6, 10),
        (6, 8, 10),
    ]
    queue.popleft()
    join_head(queue, 15)
    assert len(queue) == 2, "more than was allowed"


def test_batches_of_other_partitions_do_not_wait_for_a_commit(cluster: FakeCluster) -> None:
    cluster.create("u", partitions=2)
    for partition in (0, 1):
        cluster.append("u", [b"a", b"b"], partition)
    with cluster.consumer("u", group="g", auto_commit_interval_ms=60_000) as consumer:
        eventually(lambda: len(consumer.assignment()) == 2)
        cluster.coordinator_port.commits_paused = True
        seen = {batch.partition for batch in (consumer.poll(5), consumer.poll(5)) if batch is not None}
        assert seen == {0, 1}
        cluster.coordinator_port.commits_paused = False


def test_small_fetches_that_queue_up_are_one_batch(cluster: FakeCluster) -> None:
    cluster.topics["t"].partitions[0].max_fetch_bytes = 1  # a fetch brings one stored batch
    with cluster.consumer(group="g") as consumer:
        eventually(lambda: [len(slot.queue) for slot in consumer._session.assigned().values()] == [2])
        batch = consumer.poll(5)
        assert batch is not None and batch.offsets == range(7)
        assert batch.to_arrow().column("value").to_pylist() == [b"%d" % number for number in range(7)]


def test_the_automatic_commit_follows_the_loop(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g") as consumer:
        for record in consumer:
            if record.value == b"4":
                eventually(lambda: cluster.committed() == 4)
                break


def test_the_first_position_is_committed_too(cluster: FakeCluster) -> None:
    """Else a member that takes over would begin where its own start says, and skip what came meanwhile."""
    with cluster.consumer(group="g", start="latest"):
        eventually(lambda: cluster.committed() == 7)


def test_a_consumer_that_is_killed_commits_nothing_it_had_in_hand(cluster: FakeCluster) -> None:
    consumer = cluster.consumer(group="g")
    take(consumer, 4)
    eventually(lambda: cluster.committed() == 3)
    consumer._buffer.close()  # as after SIGKILL: nothing runs any more
    cluster.loop.run(consumer._session._fetcher.stop_all())
    for task in consumer._session._tasks:
        cluster.loop.asyncio_loop.call_soon_threadsafe(task.cancel)
    cluster.coordinator_port.forget_members()
    with cluster.consumer(group="g") as successor:
        assert take(successor, 1)[0].value == b"3"


def test_leaving_the_loop_and_coming_back_goes_on(cluster: FakeCluster) -> None:
    with quiet(cluster) as consumer:
        assert [r.offset for r in take(consumer, 2) + take(consumer, 1)] == [0, 1, 2]
        batch = consumer.poll(1)
        assert batch is not None and batch.offsets.start == 3, "poll goes on behind the record in hand"
        assert batch.to_arrow().column("value").to_pylist()[0] == b"3"
        rest = 7 - batch.offsets.stop
        assert [r.offset for r in take(consumer, rest)] == list(range(batch.offsets.stop, 7)) if rest else True


def test_an_exception_caught_outside_the_loop_skips_on(cluster: FakeCluster) -> None:
    with quiet(cluster) as consumer:
        with contextlib.suppress(ValueError):
            for record in consumer:
                if record.offset == 2:
                    raise ValueError
        assert take(consumer, 1)[0].offset == 3


def test_commit_by_hand_covers_the_record_in_hand(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        take(consumer, 4)
        assert cluster.committed() is None
        consumer.commit()
        assert cluster.committed() == 4
        assert consumer.committed("t", 0) == 4
        assert consumer.committed() == {"t": {0: 4}}
        take(consumer, 2)
    assert cluster.committed() == 4, "without auto_commit nothing is committed at close"


def test_commit_by_hand_is_not_taken_back(cluster: FakeCluster) -> None:
    with pytest.raises(RuntimeError), cluster.consumer(group="g") as consumer:  # noqa: PT012
        take(consumer, 4)
        consumer.commit()
        raise RuntimeError
    assert cluster.committed() == 4


def test_commit_of_a_batch(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        first = consumer.poll(5)
        cluster.append("t", [b"7", b"8"])
        second = consumer.poll(5)
        assert first is not None and second is not None
        consumer.commit(first)
        assert cluster.committed() == 7
        consumer.commit(second)
        assert cluster.committed() == 9


def test_commit_needs_a_group(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer, pytest.raises(InvalidArgument, match="group="):
        consumer.commit()


def test_commits_are_tried_again(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        take(consumer, 1)
        cluster.coordinator_port.commit_errors.append(CoordinatorNotAvailable("starting"))
        consumer.commit()
        assert cluster.committed() == 1


def test_a_consumer_nobody_holds_leaves_and_commits_what_was_processed(cluster: FakeCluster) -> None:
    consumer = quiet(cluster)
    take(consumer, 3)
    del consumer
    gc.collect()
    eventually(lambda: cluster.coordinator_port.left)
    assert cluster.committed() == 2, "the record in hand may not have been dealt with"


def test_a_deserializer_that_fails_names_the_record_and_holds_its_place(cluster: FakeCluster) -> None:
    def parse(value: bytes) -> int:
        if value == b"2":
            raise ValueError("not this one")
        return int(value)

    with cluster.consumer(group="g", value_deserializer=parse) as consumer:
        for _ in range(2):
            seen: list[int] = []
            with pytest.raises(InvalidRecord, match=r"t-0 at offset 2.*consumer.seek\('t', 0, 3\)"):
                seen.extend(record.value for record in consumer)
        assert seen == [], "the second time it is the first record"
        eventually(lambda: cluster.committed() == 2)
        consumer.seek("t", 0, 3)
        assert take(consumer, 1)[0].value == 3
