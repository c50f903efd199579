"""Python's logging into a topic: `logging.getLogger().addHandler(rs.LogHandler("logs"))`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from raystream.errors import BufferFull, RaystreamError, TopicNotFound

if TYPE_CHECKING:
    from raystream.cluster import Cluster

FLUSH_WAIT_S: Final = 5.0
CLOSE_WAIT_S: Final = 5.0
_OWN: Final = ("raystream",)
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogHandler(logging.Handler):
    """Sends log records as JSON objects to a raw topic, which is created if it is missing.

    Each has `time` (milliseconds since the epoch, also the record's timestamp), `level`, `logger`, `message`, `file`,
    `line`, `function`, `process`, `thread`, `host`, with `error` for a traceback and `extra` for what the program
    added. The key is the logger's name, so that one logger's records stay in order.

    A program is never held up: what finds no room in the buffer, or comes while the cluster is away for long, is
    dropped and counted in `dropped`. raystream's own log records are not sent, nor those of the thread that sends.
    `cluster` is the connection to use; without it the handler makes its own and closes it at the end.
    """

    def __init__(
        self, topic: str, cluster: Cluster | None = None, level: int | str = logging.NOTSET, **settings: Any
    ) -> None:
        """`settings` are the producer's, see `raystream.config.ProducerConfig`. Raises what `connect()` raises."""
        super().__init__(level)
        self.topic = topic
        self.dropped = 0
        self._own_cluster = cluster is None
        self._cluster = _connected() if cluster is None else cluster
        try:
            self._cluster.describe_topic(topic)
        except TopicNotFound:
            self._cluster.create_topic(topic, exist_ok=True)
        self._producer = self._cluster.producer(
            **{"max_block_ms": 0, "max_buffered_bytes": 16 << 20, "client_id": "log-handler", **settings}
        )
        self._producer.prepare(topic)
        self._inside = threading.local()
        self._host = socket.gethostname()

    def emit(self, record: logging.LogRecord) -> None:
        """Hands one log record over. Never waits, never raises."""
        if (
            record.name.partition(".")[0] in _OWN
            or self._producer.is_own_thread()
            or getattr(self._inside, "here", False)
        ):
            return
        self._inside.here = True
        try:
            sent = self._producer.send(
                self.topic, self._fields(record), key=record.name, timestamp_ms=int(record.created * 1000)
            )
            sent.add_done_callback(self._settled)
        except BufferFull:
            self.dropped += 1
        except RaystreamError:
            self.dropped += 1
            self.handleError(record)
        except Exception:  # noqa: BLE001 - a program must not fail because of its logging
            self.handleError(record)
        finally:
            self._inside.here = False

    def _settled(self, sent: Any) -> None:
        if sent.exception() is not None:
            self.dropped += 1

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "time": int(record.created * 1000),
            "level": record.levelname,
            "logger": record.name,
            "message": self.format(record) if self.formatter is not None else record.getMessage(),
            "file": record.pathname,
            "line": record.lineno,
            "function": record.funcName,
            "process": os.getpid(),
            "thread": record.threadName,
            "host": self._host,
        }
        if record.exc_info:
            fields["error"] = logging.Formatter().formatException(record.exc_info)
        extra = {name: _plain(value) for name, value in vars(record).items() if not _is_standard(name)}
        if extra:
            fields["extra"] = extra
        return fields

    def flush(self) -> None:
        """Waits until what was logged is acknowledged, for at most FLUSH_WAIT_S seconds."""
        if not self._producer.closed and not self._producer.is_own_thread():
            with contextlib.suppress(RaystreamError):
                self._producer.flush(FLUSH_WAIT_S)

    def close(self) -> None:
        """Delivers what was logged and lets go of the cluster if the handler connected by itself."""
        super().close()
        with contextlib.suppress(RaystreamError):
            self._producer.close(CLOSE_WAIT_S)
        if self._own_cluster:
            with contextlib.suppress(RaystreamError):
                self._cluster.close()


def _connected() -> Cluster:
    from raystream.cluster import connect  # loads Ray

    return connect()


def _is_standard(name: str) -> bool:
    return name in _STANDARD or name.startswith("_ray_")  # Ray stamps every record of a process that it is in


def _plain(value: Any) -> Any:
    """A value as JSON takes it: numbers, texts and nothing as they are, anything else as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    return str(value)
