"""The asynchronous objects over the synchronous ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from raystream.aio import Consumer, View
from raystream.types import Record
from tests.fakes.log import FakeCluster


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t")
        cluster.append("t", [b"a", b"b", b"c"])
        yield cluster


def test_records_and_commits(cluster: FakeCluster) -> None:
    async def main() -> list[bytes]:
        seen = []
        async with Consumer(
            cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False)
        ) as consumer:
            async for record in consumer:
                seen.append(record.value)
                if len(seen) == 2:
                    break
            await consumer.commit()
            assert await consumer.committed("t", 0) == 2
            assert [row.lag for row in await consumer.lag()] == [1]
            await consumer.seek("t", 0, "earliest")
            batch = await consumer.poll(5)
            assert batch is not None and len(batch) == 3
            assert consumer.position("t", 0) == 3 and len(consumer.assignment()) == 1
        return seen

    assert asyncio.run(main()) == [b"a", b"b"]
    assert cluster.committed() == 3


def test_an_exception_leaves_the_record_in_hand(cluster: FakeCluster) -> None:
    async def main() -> None:
        async with Consumer(cluster.consumer(group="g")) as consumer:
            async for record in consumer:
                if record.value == b"b":
                    raise ValueError("b")

    with pytest.raises(ValueError, match="b"):
        asyncio.run(main())
    assert cluster.committed() == 1


def test_close_in_finally_sees_the_exception(cluster: FakeCluster) -> None:
    async def main() -> None:
        consumer = Consumer(cluster.consumer(group="g"))
        try:
            async for record in consumer:
                if record.value == b"b":
                    raise ValueError("b")
        finally:
            await consumer.close()

    with pytest.raises(ValueError, match="b"):
        asyncio.run(main())
    assert cluster.committed() == 1


def test_batches_end_with_stop(cluster: FakeCluster) -> None:
    async def main() -> int:
        rows = 0
        async with Consumer(cluster.consumer()) as consumer:
            async for batch in consumer.batches():
                rows += len(batch)
                consumer.stop()
        return rows

    assert asyncio.run(main()) == 3


def test_handlers_may_be_coroutines(cluster: FakeCluster) -> None:
    async def main() -> list[bytes]:
        seen: list[bytes] = []
        here = asyncio.get_running_loop()
        async with Consumer(cluster.consumer(group="g")) as consumer:

            async def handle(record: Record) -> None:
                assert asyncio.get_running_loop() is here
                await asyncio.sleep(0)
                seen.append(record.value)
                if len(seen) == 3:
                    consumer.stop()

            await consumer.run(each_record=handle)
        return seen

    assert asyncio.run(main()) == [b"a", b"b", b"c"]
    assert cluster.committed() == 3


def test_cancelling_the_wait_of_a_loop(cluster: FakeCluster) -> None:
    async def main() -> int:
        async with Consumer(cluster.consumer(group="g")) as consumer:
            seen = 0

            async def read() -> None:
                nonlocal seen
                async for _ in consumer:
                    seen += 1

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), 0.3)
        return seen

    assert asyncio.run(main()) == 3
    assert cluster.coordinator_port.left


def test_views(cluster: FakeCluster) -> None:
    async def main() -> None:
        view = View(await asyncio.to_thread(cluster.view))
        assert await view.count() == 3 and view.offsets() == {0: 3}
        assert (await view.to_arrow())["value"].to_pylist() == [b"a", b"b", b"c"]
        assert len(await view.to_pandas()) == len(await view.to_polars()) == 3
        assert len(await view.head(1)) == len(await view.tail(1)) == 1

    asyncio.run(main())
