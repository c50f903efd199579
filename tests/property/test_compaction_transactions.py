"""Compaction of a log with transactions against a dict of what was committed: cleanings, grace, failing disks, crashes,
and a follower that is filled, from its own end on, from whatever is left."""

from __future__ import annotations

import contextlib
import errno
import random
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.errors import StorageError
from raystream.storage.fates import MARKER_GRACE_MS
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate, Fresh
from tests.fakes.compacting import Row, clean, committed_in, keyed
from tests.fakes.logs import append, commit, copy_batches, marker, open_log
from tests.fakes.verify import verify

GRACE_MS = 1_000
KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.sampled_from([b"1", b"22", b"x" * 200, None])
ROWS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3)
PRODUCERS = st.integers(1, 2)


class Wrote(NamedTuple):
    """What one append left: rows of a producer's transaction, or of none (epoch -1), or a marker without rows."""

    offset: int
    rows: list[tuple[bytes, bytes | None]]
    producer: int
    epoch: int
    sequence: int
    commits: bool | None = None

    @property
    def end(self) -> int:
        return self.offset + max(len(self.rows), 1)


class TransactionsMachine(RuleBasedStateMachine):
    """`wrote` is all that the log was given and has not lost."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.wrote: list[Wrote] = []
        self.flushed = 0
        self.log = self.open(self.files)
        self.follower = self.open(MemoryFiles())

    def open(self, files: MemoryFiles) -> Log:
        return open_log(files, clock=self.clock, segment_bytes=2_500)

    # What the model knows -------------------------------------------------------------------------------------------

    def of(self, producer: int) -> list[Wrote]:
        return [each for each in self.wrote if each.producer == producer]

    def place(self, producer: int) -> tuple[int, int]:
        """The producer's epoch and next sequence."""
        own = self.of(producer)
        if not own:
            return 0, 0
        return (
            (own[-1].epoch, 0) if own[-1].commits is not None else (own[-1].epoch, own[-1].sequence + len(own[-1].rows))
        )

    def first_open(self, end: int) -> int:
        """Of what lies below `end`."""
        opens = []
        for producer in (1, 2):
            own = [each for each in self.of(producer) if each.offset < end]
            if own and own[-1].commits is None:
                opens.append(next(each.offset for each in own if each.epoch == own[-1].epoch and each.commits is None))
        return min(opens, default=end)

    def committed(self) -> list[Row]:
        ends = {(m.producer, m.epoch - 1): m.commits for m in self.wrote if m.commits is not None}
        rows: list[Row] = []
        for each in self.wrote:
            if each.commits is None and (each.producer < 0 or ends.get((each.producer, each.epoch))):
                rows += [(each.offset + i, key, value) for i, (key, value) in enumerate(each.rows)]
        return rows

    # What is done ---------------------------------------------------------------------------------------------------

    @rule(rows=ROWS)
    def append(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        offset = append(self.log, keyed(rows))[0].base_offset
        self.wrote.append(Wrote(offset, rows, -1, -1, -1))

    @rule(batches=st.lists(ROWS, min_size=1, max_size=2), producer=PRODUCERS, end=st.sampled_from([True, False, None]))
    def transaction(self, batches: list[list[tuple[bytes, bytes | None]]], producer: int, end: bool | None) -> None:
        """Another one, or more of the one that is open."""
        for rows in batches:
            self.append_in_transaction(rows, producer)
        if end is not None:
            self.end(producer, end)

    def append_in_transaction(self, rows: list[tuple[bytes, bytes | None]], producer: int) -> None:
        epoch, sequence = self.place(producer)
        batch = keyed(rows, producer=(producer, epoch, sequence), attributes=b.ATTR_TRANSACTIONAL)
        assert self.log.producers.check(batch[1]) == Fresh()
        offset = append(self.log, batch)[0].base_offset
        self.wrote.append(Wrote(offset, rows, producer, epoch, sequence))

    @rule(producer=PRODUCERS, commits=st.booleans())
    def end(self, producer: int, commits: bool) -> None:
        epoch, _ = self.place(producer)
        offset = append(self.log, marker(producer, epoch + 1, commits=commits))[0].base_offset
        self.wrote.append(Wrote(offset, [], producer, epoch + 1, 0, commits))

    def commit(self) -> None:
        self.flushed = commit(self.log)

    @rule()
    def replicate(self) -> None:
        """The follower gets what its leader has from the follower's end on, and publishes it."""
        self.commit()
        end = self.follower.end_offset
        if end < self.log.end_offset:
            spans = self.log.read(end, max_bytes=1, end_offset=self.log.end_offset)
            if self.log.bounds_of(spans[0])[0] < end:
                shorter, end = self.log.from_inside(end, spans)
                self.follower.append_as_follower([(memoryview(shorter), b.parse(shorter))])
            self.follower.append_as_follower(copy_batches(self.log, end) if end < self.log.end_offset else [])
        commit(self.follower)

    @rule(
        of_follower=st.sampled_from([False, False, True]),
        window=st.sampled_from([500, 1 << 20]),
        again_after_ms=st.sampled_from([0, GRACE_MS, MARKER_GRACE_MS]),
    )
    def clean(self, of_follower: bool, window: int, again_after_ms: int) -> None:
        self.commit()
        log = self.follower if of_follower else self.log
        commit(log)
        log.checkpoint()
        self.cleaning(log, window)
        if again_after_ms:  # once the grace of what it left is over
            self.clock.advance(again_after_ms)
            self.cleaning(log, window)

    def cleaning(self, log: Log, window: int = 1 << 20) -> None:
        # a marker goes only while every replica has it
        in_sync = self.follower.end_offset == self.log.end_offset
        clean(
            log,
            now_ms=self.clock.now_ms(),
            in_sync=in_sync,
            delete_retention_ms=GRACE_MS,
            segment_bytes=2_500,
            window_bytes=window,
        )

    @rule(nth=st.integers(1, 12), fault=st.sampled_from([errno.EIO, errno.ENOSPC]), crash=st.booleans())
    def clean_on_a_bad_disk(self, nth: int, fault: int, crash: bool) -> None:
        self.commit()
        self.log.checkpoint()
        self.files.fail_at(nth, fault)
        with contextlib.suppress(StorageError):
            self.cleaning(self.log)
        self.reopen(crash=crash, forget=False)

    @rule(crash=st.booleans(), forget=st.booleans())
    def reopen(self, crash: bool, forget: bool) -> None:
        """Where `forget`, all that spares reading the log is lost too."""
        if crash:
            self.files.crash(self.rng)
        else:
            self.files.kill()
        if forget:
            for name in self.files.listdir(self.log.directory):
                if name.endswith((".producers", "checkpoint", "aborted")):
                    self.files.unlink(f"{self.log.directory}/{name}")
        self.log = self.open(self.files)
        end = self.log.end_offset
        assert end >= max(self.flushed, self.follower.end_offset)
        self.wrote = [each for each in self.wrote if each.end <= end]
        assert not self.wrote or self.wrote[-1].end == end
        self.flushed = commit(self.log)

    @rule(now=st.sampled_from([False, False, True]))
    def turn_over(self, now: bool) -> None:
        """The follower leads from here on, where it has everything."""
        if now and self.follower.end_offset == self.log.end_offset and self.wrote:
            commit(self.follower)
            self.log.close()
            self.log, self.files = self.follower, self.follower._files  # type: ignore[assignment]
            self.follower = self.open(MemoryFiles())

    # What holds -----------------------------------------------------------------------------------------------------

    @invariant()
    def knows_what_is_open_and_whose_sequence_comes_next(self) -> None:
        for log in (self.log, self.follower):
            assert log.producers.first_open(log.end_offset) == self.first_open(log.end_offset)
        for producer in (1, 2):
            own = self.of(producer)
            if own and own[-1].commits is None:
                again = keyed(own[-1].rows, producer=(producer, own[-1].epoch, own[-1].sequence), attributes=2)[1]
                assert isinstance(self.log.producers.check(again), Duplicate)
            elif own:
                assert self.log.producers.last_of_each()[producer] == (own[-1].epoch, -1)

    @invariant()
    def reads_as_the_dict_of_what_was_committed(self) -> None:
        for log in (self.log, self.follower):
            stable = log.producers.last_stable_offset(log.high_watermark, log.start_offset)
            rows = [row for row in self.committed() if row[0] < stable]
            found = committed_in(log)
            assert set(found) <= set(rows), "what was never committed is read, or what is not stable"
            expected = {key: (offset, value) for offset, key, value in rows}
            kept = {key: (offset, value) for offset, key, value in found}
            alive = {key for key, (_, value) in expected.items() if value is not None}
            assert {key: kept.get(key) for key in alive} == {key: expected[key] for key in alive}
            for key in kept.keys() - alive:
                assert kept[key] == expected[key], "an older value came back"

    @invariant()
    def is_whole(self) -> None:
        assert verify(self.log) == [] == verify(self.follower)


TestTransactions = TransactionsMachine.TestCase
TestTransactions.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
