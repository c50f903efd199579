"""Compaction against a dict, over appends, cleanings in one or several passes, failing disks, kills and crashes."""

from __future__ import annotations

import contextlib
import errno
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raystream.clock import ManualClock
from raystream.errors import StorageError
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate
from tests.fakes.compacting import Row, clean, keyed, rows_in
from tests.fakes.logs import append, commit, open_log
from tests.fakes.verify import verify

GRACE_MS = 1_000
KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"", None])
VALUES = st.sampled_from([b"1", b"22", b"x" * 300, None])


class CompactionMachine(RuleBasedStateMachine):
    """`rows` are all that were ever appended; a dict made of the log is the one made of them."""

    @initialize(segment_bytes=st.sampled_from([1_500, 4_000]), seed=st.integers(0, 2**32))
    def begin(self, segment_bytes: int, seed: int) -> None:
        self.segment_bytes = segment_bytes
        self.rng = random.Random(seed)
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.rows: list[Row] = []
        self.flushed = 0
        self.sequence = 0
        self.last_sequence: tuple[int, int] | None = None
        self.open()

    def open(self) -> None:
        self.log = open_log(self.files, clock=self.clock, segment_bytes=self.segment_bytes)

    @rule(rows=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4), zstd=st.booleans(), epoch=st.integers(0, 1))
    def append(self, rows: list[tuple[bytes | None, bytes | None]], zstd: bool, epoch: int) -> None:
        first = len(self.rows)
        encoded = keyed(rows, producer=(5, 0, self.sequence), compression="zstd" if zstd else None)
        append(self.log, encoded, epoch=max(self.log.epochs.last + epoch, 1))
        self.last_sequence = (self.sequence, len(rows))
        self.sequence += len(rows)
        self.rows += [(first + i, key, value) for i, (key, value) in enumerate(rows)]

    @rule()
    def commit(self) -> None:
        self.flushed = commit(self.log)

    @rule(ms=st.sampled_from([10, GRACE_MS]))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(map_bytes=st.sampled_from([1, 1 << 20]), window=st.sampled_from([500, 1 << 20]))
    def clean(self, map_bytes: int, window: int) -> None:
        self.commit()
        self.log.checkpoint()
        self.cleaning(map_bytes=map_bytes, window_bytes=window)

    def cleaning(self, **changes: Any) -> None:
        clean(
            self.log,
            now_ms=self.clock.now_ms(),
            delete_retention_ms=GRACE_MS,
            segment_bytes=self.segment_bytes,
            **changes,
        )

    @rule(nth=st.integers(1, 12), fault=st.sampled_from([errno.EIO, errno.ENOSPC]), crash=st.booleans())
    def clean_on_a_bad_disk(self, nth: int, fault: int, crash: bool) -> None:
        self.commit()
        self.log.checkpoint()
        self.files.fail_at(nth, fault)
        with contextlib.suppress(StorageError):
            self.cleaning()
        self.reopen(crash=crash)

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        if crash:
            self.files.crash(self.rng)
        else:
            self.files.kill()
        self.open()
        end = self.log.end_offset
        assert self.flushed <= end <= len(self.rows)
        if end < len(self.rows):
            del self.rows[end:]
            self.sequence, self.last_sequence = end, None
        elif self.last_sequence is not None:
            first, count = self.last_sequence
            again = keyed([(b"k", b"v")] * count, producer=(5, 0, first))[1]
            assert isinstance(self.log.producers.check(again), Duplicate)

    @invariant()
    def reads_as_the_dict(self) -> None:
        found = rows_in(self.log)
        assert set(found) <= set(self.rows)
        assert [row[0] for row in found] == sorted({row[0] for row in found})
        expected = {key: row for row in self.rows if (key := row[1]) is not None}
        kept = {key: row for row in found if (key := row[1]) is not None}
        alive = {key for key, row in expected.items() if row[2] is not None}
        assert {key: kept[key] for key in alive} == {key: expected[key] for key in alive}
        for key in kept.keys() - alive:
            assert kept[key] == expected[key], "an older value came back"
        assert [row for row in found if row[1] is None] == [row for row in self.rows if row[1] is None]

    @invariant()
    def is_whole(self) -> None:
        assert verify(self.log) == []


TestCompaction = CompactionMachine.TestCase
TestCompaction.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
