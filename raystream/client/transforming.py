"""`cluster.pipeline(…)`: reads a topic, transforms it batch by batch and writes another, exactly once.

Each batch is a transaction: what was made of it and how far the source was read count together or not at all. A worker
that dies, is cut off or loses its partitions to another one has its open transaction aborted, and whoever has the
partitions then reads from the last commit on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.client.producer import Producer
from raystream.errors import (
    DeliveryFailed,
    FencedMember,
    FencedProducer,
    InvalidRecord,
    RaystreamError,
    TransactionTimedOut,
    UnknownMember,
)

log = logging.getLogger("raystream")

POLL_S: Final = 0.2
AGAIN_S: Final = 0.2
Transform = Callable[[Batch], Any]
_AGAIN = (FencedMember, UnknownMember, TransactionTimedOut)


class PipelineWorker:
    """One member of a pipeline's group with its producer. A context manager; `stop` from any thread.

    `transform` takes a `Batch` and returns what is to be written: a frame or table, an iterable of what `send_many`
    takes, or None for nothing. It may be called again with the same records, after an abort.
    """

    def __init__(
        self, consumer: Consumer, producer: Producer, transform: Transform, sink: str, *, exactly_once: bool
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._transform = transform
        self._sink = sink
        self._exactly_once = exactly_once
        self._stopping = False
        self.batches = 0
        """How many batches are committed."""

    def run(self, max_batches: int | None = None) -> None:
        """Works until `stop()`, or until so many batches are committed. Raises what `transform` raises, after an abort;
        FencedProducer once another worker has this one's place."""
        while not self._stopping and (max_batches is None or self.batches < max_batches):
            batch = self._consumer.poll(POLL_S)
            if batch is None:
                continue
            try:
                self._once(batch)
            except FencedProducer:
                raise
            except (*_AGAIN, DeliveryFailed) as error:
                if isinstance(error, DeliveryFailed) and not _may_pass(error):
                    raise
                log.info("a batch of %s is read again: %s", batch.topic_partition, error)
                time.sleep(AGAIN_S)
                self._consumer.rewind()
            else:
                self.batches += 1

    def _once(self, batch: Batch) -> None:
        if not self._exactly_once:
            self._send(self._transform(batch))
            self._producer.flush()
            self._consumer.commit(batch)
            return
        with self._producer.transaction():
            self._send(self._transform(batch))
            self._producer.commit_offsets(self._consumer, batch)

    def _send(self, made: Any) -> None:
        if made is None:
            return
        if hasattr(made, "__arrow_c_stream__") or hasattr(made, "iloc"):
            self._producer.send_frame(self._sink, made)
        elif isinstance(made, (bytes, str, dict)) or not isinstance(made, Iterable):
            raise InvalidRecord(
                f"transform returned a {type(made).__name__}: return a frame, an iterable of records, or None"
            )
        else:
            self._producer.send_many(self._sink, made)

    def stop(self) -> None:
        """Ends `run` after the batch in hand. From any thread."""
        self._stopping = True

    def close(self) -> None:
        """Leaves the group; what is open is aborted."""
        try:
            self._producer.close()
        finally:
            self._consumer.close(processed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RaystreamError as second:
            if error is None:
                raise
            error.add_note(f"and while the worker was closed: {second}")


def _may_pass(failed: DeliveryFailed) -> bool:
    """Whether a transaction that failed so may go through when it is tried again."""
    causes = [error for _, _, _, error in failed.failures]
    return all(isinstance(error, (FencedProducer, *_AGAIN)) or getattr(error, "retriable", False) for error in causes)
