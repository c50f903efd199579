"""Compacts the logs of a partition actor's replicas, one at a time, beside the writer: leaders' and followers' alike.

Each replica compacts its own log. It reads and writes files that nobody appends to; only the exchange of a segment's
file takes the writer's turn. It breathes between pieces of work, so that appends get the processor and the disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from raystream.actors.background import let_others_go_first
from raystream.actors.replica import Replica
from raystream.clock import Clock
from raystream.core.cleaning import SegmentFacts, clean_up_to
from raystream.core.topic_names import is_internal
from raystream.errors import RaystreamError
from raystream.storage.cleaner import Cleaned, Cleaner, CleaningSettings, next_horizon
from raystream.storage.fates import fates_in

logger = logging.getLogger("raystream.partition")

LOOK_MS: Final = 5_000.0
BREATH_SHARE: Final = 0.6
"""So much of the time that a piece of work took is waited before the next, or more, so that it comes to no more than
MAX_BYTES_PER_S."""
MAX_BYTES_PER_S: Final = 700_000_000
"""Read, written and removed, all counted. A log is read two times, and a third time where something of it stays."""


class _Stopped(RaystreamError):
    """The actor ends, or has closed the replica."""


class Compactor:
    """One thread. `on_writer` has work done on the writer's turn and waits for it."""

    def __init__(
        self,
        replicas: Callable[[], Sequence[Replica]],
        clock: Clock,
        on_writer: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._replicas = replicas
        self._clock = clock
        self._on_writer = on_writer
        self._horizons: dict[Replica, int | None] = {}
        self._stopping = threading.Event()
        self._worked_ms = 0.0
        self._thread = threading.Thread(target=self._run, name="raystream-compaction", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        let_others_go_first()
        while not self._stopping.wait(LOOK_MS / 1000):
            try:
                self.round()
            except Exception:
                logger.exception("the logs could not be compacted")

    def round(self) -> list[Cleaned]:
        """Compacts every log that is due for it."""
        done = []
        served = self._replicas()
        self._horizons = {replica: self._horizons[replica] for replica in served if replica in self._horizons}
        for replica in served:
            if self._stopping.is_set():
                break
            if not replica.config.compacts or is_internal(replica.spec.topic) or replica.key_column is None:
                continue
            try:
                cleaned = self._clean(replica)
            except (RaystreamError, FileNotFoundError) as error:  # what is damaged is the scrubber's to repair
                logger.info("the log of %s could not be compacted: %s", replica.name, error)
                continue
            if cleaned is not None:
                logger.info("%s: compacted: %s", replica.name, cleaned)
                done.append(cleaned)
        return done

    def _clean(self, replica: Replica) -> Cleaned | None:
        log, config = replica.log, replica.config
        sealed = [(segment.base_offset, segment.loaded_tail()) for segment in log.segments[:-1]]
        up_to = clean_up_to(
            [SegmentFacts(base, t.end_offset, t.size, t.first_append_ms, t.last_append_ms) for base, t in sealed],
            cleaned_to=log.cleaned_to,
            bound=min(replica.last_stable_offset, log.flushed_end_offset),
            min_cleanable_dirty_ratio=config.min_cleanable_dirty_ratio,
            min_compaction_lag_ms=config.min_compaction_lag_ms,
            max_compaction_lag_ms=config.max_compaction_lag_ms,
            now_ms=self._clock.now_ms(),
            horizon_ms=self._horizon_of(replica),
        )
        if up_to is None or replica.key_column is None:
            return None
        if log.snapshot_offset < up_to:
            self._on_writer(log.checkpoint)  # compacted batches do not tell who produced them
        settings = CleaningSettings(
            key_column=replica.key_column,
            time_column=log.time_column,
            raw=log.heads.raw_time_column() is not None,
            segment_bytes=config.segment_bytes,
            delete_retention_ms=config.delete_retention_ms,
        )
        self._worked_ms = self._clock.monotonic_ms()
        now_ms = self._clock.now_ms()
        in_sync = set(replica.spec.isr) >= set(replica.spec.replicas)
        fates = self._on_writer(lambda: fates_in(log, now_ms=now_ms, in_sync=in_sync))
        cleaner = Cleaner(log, settings, self._on_writer, fates, now_ms=now_ms, breathe=partial(self._breathe, replica))
        cleaned = cleaner.run(up_to)
        self._horizons[replica] = cleaned.next_horizon_ms
        return cleaned

    def _horizon_of(self, replica: Replica) -> int | None:
        """When the next tombstone of what is clean may go; for a log that was just opened its headers are read."""
        if replica not in self._horizons:
            self._horizons[replica] = next_horizon(replica.log)
        return self._horizons[replica]

    def _breathe(self, replica: Replica, nbytes: int) -> None:
        took_ms = self._clock.monotonic_ms() - self._worked_ms
        pause_ms = max(took_ms * BREATH_SHARE, nbytes * 1_000 / MAX_BYTES_PER_S - took_ms)
        if self._stopping.wait(pause_ms / 1000) or replica not in self._replicas():
            raise _Stopped("the replica is served from here no more")
        self._worked_ms = self._clock.monotonic_ms()
