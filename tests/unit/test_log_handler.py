"""Python's logging into a topic."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from raystream.client.producer import Producer
from raystream.errors import InvalidRecord, TopicNotFound
from raystream.log_handler import LogHandler
from tests.fakes.cluster import FakeCluster, Fault, refused


class Connection:
    """What a handler asks of a cluster."""

    def __init__(self, fake: FakeCluster) -> None:
        self.fake = fake
        self.closed = False

    def describe_topic(self, name: str) -> None:
        if name not in self.fake.topics:
            raise TopicNotFound(name)

    def create_topic(self, name: str, *, exist_ok: bool) -> None:
        assert exist_ok
        self.fake.create(name)

    def producer(self, *, client_id: str = "", **settings: Any) -> Producer:
        assert client_id == "log-handler"
        return self.fake.producer(**settings)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    one = logging.Logger("shop.orders", logging.DEBUG)  # noqa: LOG001 - its own, so that tests share nothing
    yield one
    for handler in one.handlers:
        handler.close()


def attach(logger: logging.Logger, fake: FakeCluster, **settings: Any) -> LogHandler:
    handler = LogHandler("logs", Connection(fake), **settings)  # type: ignore[arg-type]
    logger.addHandler(handler)
    return handler


def logged(fake: FakeCluster) -> list[dict[str, Any]]:
    return [json.loads(value) for value in fake.topics["logs"].column()]


def test_a_record_becomes_json(fake: FakeCluster, logger: logging.Logger) -> None:
    handler = attach(logger, fake)
    logger.warning("order %d is late", 7, extra={"order": 7, "cart": {1, 2}, "share": float("nan")})
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("failed")
    handler.flush()
    late, failed = logged(fake)
    assert late["message"] == "order 7 is late"
    assert (late["level"], late["logger"], late["thread"]) == ("WARNING", "shop.orders", "MainThread")
    assert late["extra"] == {"order": 7, "cart": "{1, 2}", "share": "nan"}
    assert late["file"].endswith("test_log_handler.py")
    assert "ZeroDivisionError" in failed["error"]
    rows = fake.topics["logs"].partitions[0].rows()
    assert [row["key"] for row in rows] == [b"shop.orders"] * 2
    assert rows[0]["timestamp"] == late["time"]


def test_levels_and_formatters(fake: FakeCluster, logger: logging.Logger) -> None:
    handler = attach(logger, fake, level="ERROR")
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    logger.info("not sent")
    logger.error("sent")
    handler.flush()
    assert [record["message"] for record in logged(fake)] == ["<sent>"]


def test_raystreams_own_logging_is_not_sent(fake: FakeCluster) -> None:
    handler = LogHandler("logs", Connection(fake))  # type: ignore[arg-type]
    for name in ("raystream", "raystream.anything"):
        handler.handle(logging.makeLogRecord({"name": name, "msg": "own"}))
    fake.on_loop(handler.handle, logging.makeLogRecord({"name": "asyncio", "msg": "on the sending thread"}))
    handler.handle(logging.makeLogRecord({"name": "raystreamer", "msg": "somebody else's"}))
    handler.flush()
    assert [record["message"] for record in logged(fake)] == ["somebody else's"]
    handler.close()


def test_a_full_buffer_drops_and_counts(fake: FakeCluster, logger: logging.Logger) -> None:
    handler = attach(logger, fake, max_buffered_bytes=65_536)
    gate = fake.hold(fake.topics["logs"].partitions[0])
    for _ in range(200):
        logger.info("x" * 1_000)
    assert 130 <= handler.dropped <= 160
    fake.on_loop(gate.set)
    handler.flush()
    assert len(logged(fake)) == 200 - handler.dropped


def test_what_cannot_be_delivered_is_counted(fake: FakeCluster, logger: logging.Logger) -> None:
    handler = attach(logger, fake)
    fake.topics["logs"].partitions[0].fault = lambda _: refused(InvalidRecord("bad"))
    logger.info("lost")
    handler.close()
    assert handler.dropped == 1
    logger.removeHandler(handler)


def test_closing_delivers_and_later_records_harm_nobody(
    fake: FakeCluster, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = attach(logger, fake)
    logger.info("last")
    handler.close()
    assert [record["message"] for record in logged(fake)] == ["last"]
    logger.info("after")
    assert handler.dropped == 1
    assert "Closed" in capsys.readouterr().err
    handler.flush()
    handler.close()


def test_a_message_that_cannot_be_made_is_reported(
    fake: FakeCluster, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = attach(logger, fake)
    logger.info("%d", "no number")
    assert "no number" in capsys.readouterr().err
    logger.info("goes on")
    handler.flush()
    assert len(logged(fake)) == 1


def test_a_slow_cluster_does_not_hold_the_program_up(fake: FakeCluster, logger: logging.Logger) -> None:
    attach(logger, fake)
    fake.topics["logs"].partitions[0].faults.append(Fault(delay_ms=300))
    for number in range(100):
        logger.info("%d", number)
    assert fake.topics["logs"].partitions[0].end_offset == 0
