"""Retention against a plain list of records, over appends, passing time, changed settings, kills and crashes."""

from __future__ import annotations

import contextlib
import errno
import random
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raystream import messages as m
from raystream.actors.replica import Replica
from raystream.clock import ManualClock
from raystream.errors import StorageError
from raystream.schema import RAW_SCHEMA
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.logs import DIRECTORY, TOPIC_ID, append, message, read_all
from tests.fakes.replicas import Deaf
from tests.fakes.verify import verify


class Kept(NamedTuple):
    """A record of the model."""

    value: bytes
    append_ms: int


class RetentionMachine(RuleBasedStateMachine):
    """`records` are all that were ever appended; a replica that leads alone deletes on its own clock."""

    @initialize(segment_bytes=st.sampled_from([2_000, 5_000]), seed=st.integers(0, 2**32))
    def begin(self, segment_bytes: int, seed: int) -> None:
        self.config: dict[str, int | None] = {"segment_bytes": segment_bytes}
        self.rng = random.Random(seed)
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.records: list[Kept] = []
        self.committed = 0
        self.start = 0
        self.open()

    def open(self) -> None:
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
        self.replica = Replica(spec, self.files, self.clock, Deaf())
        self.replica.open()
        self.set_config()

    def set_config(self) -> None:
        config = self.replica.config
        for name, value in self.config.items():
            object.__setattr__(config, name, value)  # below the ranges that users get

    @rule(rows=st.integers(1, 4), commit=st.booleans())
    def append(self, rows: int, commit: bool) -> None:
        values = [b"%06d" % (len(self.records) + i) * 20 for i in range(rows)]
        append(self.replica.log, message(values))
        self.records += [Kept(value, self.clock.now_ms()) for value in values]
        if commit:
            self.commit()

    @rule()
    def commit(self) -> None:
        self.replica.publish(self.replica.log.flush())
        self.committed = len(self.records)

    @rule(ms=st.sampled_from([100, 1_000, 30_000]))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(retention_ms=st.sampled_from([None, 50, 5_000, 60_000]), size=st.sampled_from([None, 1, 3_000, 9_000]))
    def alter(self, retention_ms: int | None, size: int | None) -> None:
        self.config |= {"retention_ms": retention_ms, "retention_bytes": size}
        self.set_config()

    @rule()
    def turn(self) -> None:
        log, config = self.replica.log, self.replica.config
        self.clock.advance(5_000)
        before = log.start_offset
        size = log.size_bytes
        self.replica.commit()
        self.committed = max(self.committed, log.flushed_end_offset)
        if log.start_offset == before:
            assert log.size_bytes == size
        assert log.start_offset <= self.replica.high_watermark
        deleted = self.records[before : log.start_offset]
        now_ms = self.clock.now_ms()
        if config.retention_bytes is None:
            limit = -1 if config.retention_ms is None else now_ms - config.retention_ms
            assert all(record.append_ms <= limit for record in deleted)
        if config.retention_ms is None and deleted:
            assert log.size_bytes >= (config.retention_bytes or 0)
        for segment in log.segments[:1]:  # the oldest that stays has a reason to
            rows = self.records[segment.base_offset : segment.tail.end_offset]
            if segment.tail.end_offset <= self.replica.high_watermark and config.retention_ms is not None:
                assert max(record.append_ms for record in rows) > now_ms - config.retention_ms
        self.start = log.start_offset

    @rule(nth=st.integers(1, 8))
    def crash_in_a_turn(self, nth: int) -> None:
        self.clock.advance(5_000)
        aimed = self.replica._retention._first_kept() or self.start
        self.files.fail_at(nth, errno.EIO)
        with contextlib.suppress(StorageError):
            self.replica.commit()
        self.files.crash(self.rng)
        self.reopened(aimed)

    @rule()
    def crash(self) -> None:
        self.files.crash(self.rng)
        self.reopened(self.start)

    def reopened(self, aimed: int) -> None:
        self.open()
        log = self.replica.log
        assert self.committed <= log.end_offset <= len(self.records)
        assert log.start_offset in (self.start, aimed)
        del self.records[log.end_offset :]
        self.start = log.start_offset
        self.commit()

    @invariant()
    def holds_the_rest_of_the_list(self) -> None:
        log = self.replica.log
        expected = list(enumerate(record.value for record in self.records))[log.start_offset :]
        assert read_all(log) == expected
        assert verify(log) == []


TestRetention = RetentionMachine.TestCase
TestRetention.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
