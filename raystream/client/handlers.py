"""The loop of `consumer.run`: a handler per record or batch, its retries, and what happens to what it cannot handle."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias

from raystream.client.buffer import Buffer
from raystream.client.delivered import Batch
from raystream.client.records import Deserializer
from raystream.errors import HandlerFailed, InvalidArgument, RaystreamError
from raystream.types import Record

log = logging.getLogger("raystream")

Produce: TypeAlias = Callable[[str, bytes | None, bytes | None, list[tuple[str, bytes]]], None]
"""`produce(topic, value, key, headers)` returns when the record is durable."""

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
_LOOK_S: Final = 0.05
_ON_ERROR: Final = ("stop", "skip")


class Runner(Protocol):
    """What the loop needs of its consumer."""

    def commit_processed(self) -> None: ...

    def close(self) -> None: ...


def run_handlers(
    consumer: Runner,
    buffer: Buffer,
    each_record: Callable[[Record], Any] | None,
    each_batch: Callable[[Batch], Any] | None,
    *,
    on_error: str,
    retries: int,
    dead_letter: str | None,
    produce: Produce | None,
    deserializers: tuple[Deserializer | None, Deserializer | None],
) -> None:
    """Runs until `stop`, SIGTERM or an error; see `Consumer.run`."""
    if (each_record is None) == (each_batch is None):
        raise InvalidArgument("run() takes either each_record= or each_batch=")
    if on_error not in _ON_ERROR:
        raise InvalidArgument(f"on_error={on_error!r} is neither 'stop' nor 'skip'")
    if retries < 0:
        raise InvalidArgument(f"retries={retries}: give 0 or more")
    if dead_letter is not None and produce is None:
        raise InvalidArgument("dead_letter= needs a consumer that was made by cluster.consumer(…)")
    policy = _Policy(buffer, on_error, retries, dead_letter, produce)
    with until_sigterm(buffer.stop) as terminated:
        try:
            if each_record is not None:
                _records(buffer, policy, each_record, deserializers)
            elif each_batch is not None:
                _batches(buffer, policy, each_batch)
        except BaseException:
            buffer.rewind()
            with contextlib.suppress(RaystreamError):
                consumer.commit_processed()
            raise
        if terminated.is_set():
            consumer.close()
        else:
            consumer.commit_processed()


def _records(
    buffer: Buffer,
    policy: _Policy,
    handler: Callable[[Record], Any],
    deserializers: tuple[Deserializer | None, Deserializer | None],
) -> None:
    key_deserializer, value_deserializer = deserializers
    plain = key_deserializer is None and value_deserializer is None

    def handle(raw: Record) -> None:
        record = raw
        if key_deserializer is not None and raw.key is not None:
            record = record._replace(key=key_deserializer(raw.key))
        if value_deserializer is not None and raw.value is not None:
            record = record._replace(value=value_deserializer(raw.value))
        handler(record)

    call = handler if plain else handle
    while (run := buffer.next_run(None, deserialize=False)) is not None:
        for raw in run.records:
            error = _failure(call, raw)
            if error is not None and not policy.settle(partial(call, raw), error, [raw], _place(raw), record=raw):
                return


def _batches(buffer: Buffer, policy: _Policy, handler: Callable[[Batch], Any]) -> None:
    while (batch := buffer.take(None)) is not None:
        error = _failure(handler, batch)
        if error is None:
            continue
        place = f"batch {batch.topic}-{batch.partition}, offsets {batch.offsets.start} to {batch.offsets.stop}"
        if not policy.settle(partial(handler, batch), error, _raw(batch), place, batch=batch):
            return


def _failure(handler: Callable[..., Any], *arguments: Any) -> Exception | None:
    try:
        handler(*arguments)
    except Exception as error:  # noqa: BLE001  a user's handler may raise anything
        return error
    return None


def _raw(batch: Batch) -> Iterator[Record]:
    for run in batch.runs(deserialize=False):
        yield from run.records


def _place(record: Record) -> str:
    return f"record {record.topic}-{record.partition} at offset {record.offset}"


class _Policy:
    """What happens when a handler raises."""

    def __init__(
        self, buffer: Buffer, on_error: str, retries: int, dead_letter: str | None, produce: Produce | None
    ) -> None:
        self._buffer = buffer
        self._on_error = on_error
        self._retries = retries
        self._dead_letter = dead_letter
        self._produce = produce

    def settle(self, again: Callable[[], Any], error: Exception, records: Any, place: str, **where: Any) -> bool:
        """Tries again, then dead letter, skip or stop. False where `stop()` came between two tries: then what is in
        hand stays unprocessed. Raises HandlerFailed."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._retries):
            log.info("the handler raised %r on %s; try %d of %d follows", error, place, attempt + 2, self._retries + 1)
            if not self._pause(pause_s):
                self._buffer.rewind()
                self._buffer.clear_stop()
                return False
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
            failure = _failure(again)
            if failure is None:
                return True
            error = failure
        if self._dead_letter is not None and self._produce is not None:
            self._send_away(self._dead_letter, self._produce, records, error)
            log.warning("the handler raised %r on %s; it went to topic %r", error, place, self._dead_letter)
        elif self._on_error == "skip":
            log.warning("the handler raised %r on %s; it is skipped", error, place)
        else:
            tries = self._retries + 1
            raise HandlerFailed(f"the handler raised {error!r} on {place}, {tries} times in a row", **where) from error
        return True

    def _pause(self, pause_s: float) -> bool:
        until = time.monotonic() + pause_s
        while (left := until - time.monotonic()) > 0:
            if self._buffer.stopping:
                return False
            time.sleep(min(left, _LOOK_S))
        return True

    def _send_away(self, topic: str, produce: Produce, records: Any, error: Exception) -> None:
        for record in records:
            origin = [
                ("raystream.error", repr(error).encode()),
                ("raystream.topic", record.topic.encode()),
                ("raystream.partition", str(record.partition).encode()),
                ("raystream.offset", str(record.offset).encode()),
                ("raystream.timestamp", str(record.timestamp_ms).encode()),
            ]
            headers = [(name, value or b"") for name, value in record.headers]
            produce(topic, as_bytes(record.value), as_bytes(record.key), headers + origin)


def as_bytes(value: Any) -> bytes | None:
    """A raw record's bytes as they are, a typed one's row or key as JSON."""
    if value is None or isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value, default=str).encode()


@contextlib.contextmanager
def until_sigterm(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """In the main thread, SIGTERM calls `stop`, which ends the loop after the record in hand; the handler before is put
    back."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        terminated.set()
        stop()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
