"""The log against a plain list, over appends, rolls, flushes, deletions, full and failing disks, kills and crashes."""

from __future__ import annotations

import errno
import itertools
import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.errors import DiskFull, OffsetOutOfRange, StorageError
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate, Fresh
from tests.fakes.logs import FIRST_MS, Message, append, commit, message, open_log, read_all
from tests.fakes.verify import verify

PRODUCERS = (5, 6)
FAULTS = (errno.ENOSPC, errno.EIO)


class LogMachine(RuleBasedStateMachine):
    """`appended` holds the record values of each batch in the order of appends; a batch is the unit of loss."""

    @initialize(segment_bytes=st.sampled_from([2_000, 6_000, 1 << 20]), seed=st.integers(0, 2**32))
    def begin(self, segment_bytes: int, seed: int) -> None:
        self.segment_bytes = segment_bytes
        self.rng = random.Random(seed)
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.appended: list[list[bytes]] = []
        self.producer_of: list[int | None] = []
        self.flushed = 0
        self.failed: list[list[bytes]] = []
        self.failed_of: list[tuple[int | None, int]] = []
        self.epoch = 3
        self.epoch_of: list[int] = []
        self.start = 0
        self.count = 0
        self.next_sequence: dict[int, int] = {}
        self.log: Log = self.open()

    def open(self) -> Log:
        return open_log(self.files, clock=self.clock, segment_bytes=self.segment_bytes)

    @property
    def broken(self) -> bool:
        return bool(self.failed)

    def batch(self, rows: int, schema_id: int, producer: int | None) -> tuple[list[bytes], Message]:
        values = [b"%06d" % (self.count + i) * (1 + 40 * (self.count % 3 == 0)) for i in range(rows)]
        self.count += rows
        stated = (-1, -1, -1) if producer is None else (producer, 0, self.next_sequence.get(producer, 0))
        times = [FIRST_MS + self.count * 10 + i for i in range(rows)]
        return values, message(values, timestamps=times, schema_id=schema_id, producer=stated)

    @precondition(lambda self: not self.broken)
    @rule(
        rows=st.lists(st.integers(1, 4), min_size=1, max_size=5),
        schema_id=st.sampled_from([1, 1, 1, 2]),
        producer=st.sampled_from([None, *PRODUCERS]),
    )
    def append(self, rows: list[int], schema_id: int, producer: int | None) -> None:
        new = []
        for count in rows:
            values, encoded = self.batch(count, schema_id, producer)
            new.append((values, encoded))
            if producer is not None:
                self.next_sequence[producer] = encoded[1].last_sequence + 1
        before = self.log.end_offset
        results = append(self.log, *[encoded for _, encoded in new], epoch=self.epoch)
        for (values, _), result in zip(new, results, strict=True):
            assert result.base_offset == before
            before = result.next_offset
            self.appended.append(values)
            self.producer_of.append(producer)
            self.epoch_of.append(self.epoch)
        assert self.log.end_offset == before

    @precondition(lambda self: not self.broken)
    @rule(
        nth=st.integers(1, 6), fault=st.sampled_from(FAULTS), rows=st.lists(st.integers(1, 4), max_size=6, min_size=1)
    )
    def append_on_a_bad_disk(self, nth: int, fault: int, rows: list[int]) -> None:
        new = [self.batch(count, self.rng.choice([1, 1, 2]), None) for count in rows]
        end, content = self.log.end_offset, read_all(self.log)
        self.files.fail_at(nth, fault)
        try:
            append(self.log, *[encoded for _, encoded in new], epoch=self.epoch)
        except DiskFull:
            assert read_all(self.log) == content
            assert self.log.end_offset == end
        except StorageError:
            self.failed = [values for values, _ in new]
            self.failed_of = [(None, self.epoch)] * len(new)
        else:
            self.appended += [values for values, _ in new]
            self.producer_of += [None] * len(new)
            self.epoch_of += [self.epoch] * len(new)
        self.files.fail_at(10**9, fault)

    @precondition(lambda self: not self.broken)
    @rule()
    def flush(self) -> None:
        assert commit(self.log) == self.log.end_offset == self.log.flushed_end_offset
        self.flushed = len(self.appended)

    @precondition(lambda self: not self.broken)
    @rule()
    def fill_the_disk(self) -> None:
        used = self.files.capacity_bytes - self.files.free_bytes("")
        _, encoded = self.batch(4, 1, None)
        self.files.capacity_bytes = used + self.rng.randrange(len(encoded[0]))
        before = read_all(self.log)
        try:
            append(self.log, encoded)
            raise AssertionError("the append fitted a disk that is too small for it")
        except DiskFull:
            self.clock.advance(10_000)
            self.log.maybe_checkpoint()  # must not raise
        finally:
            self.files.capacity_bytes = 1 << 50
        assert read_all(self.log) == before

    @precondition(lambda self: not self.broken)
    @rule(advance_ms=st.sampled_from([0, 6_000]))
    def maybe_checkpoint(self, advance_ms: int) -> None:
        self.clock.advance(advance_ms)
        self.log.maybe_checkpoint()
        if self.log.flushed_end_offset == self.log.end_offset:
            self.flushed = len(self.appended)

    @precondition(lambda self: not self.broken)
    @rule(fraction=st.floats(0, 1))
    def delete_before(self, fraction: float) -> None:
        offset = self.start + int((self.log.high_watermark - self.start) * fraction)
        if offset >= self.start:
            self.log.delete_before(offset)
            if offset > self.start:
                self.flushed = len(self.appended)
            self.start = offset

    @precondition(lambda self: not self.broken)
    @rule()
    def elect(self) -> None:
        """Another leader epoch begins."""
        self.epoch += self.rng.randrange(1, 3)

    @precondition(lambda self: not self.broken)
    @rule(fraction=st.floats(0, 1), nth=st.sampled_from([None, 1, 2, 3, 4, 5, 7, 9]))
    def truncate(self, fraction: float, nth: int | None) -> None:
        """Drops some of what is not published, on a disk that may fail at its `nth` operation."""
        offset = self.log.high_watermark + round((self.log.end_offset - self.log.high_watermark) * fraction)
        kept, end = 0, 0
        for values in self.appended:
            if end + len(values) > offset:
                break
            kept, end = kept + 1, end + len(values)
        tail = self.appended[kept:], [*zip(self.producer_of, self.epoch_of, strict=True)][kept:]
        if nth is not None:
            self.files.fail_at(nth, errno.EIO)
        try:
            assert self.log.truncate(offset) == (end if tail[0] else self.log.end_offset)
        except StorageError:
            self.failed, self.failed_of = tail
        else:
            verify(self.log)
        self.files.fail_at(10**9, errno.EIO)
        self.flushed = kept if not self.failed and tail[0] else min(self.flushed, kept)
        del self.appended[kept:], self.producer_of[kept:], self.epoch_of[kept:]
        if not self.broken:
            self.count_sequences()

    @precondition(lambda self: not self.broken)
    @invariant()
    def epochs_are_those_of_the_batches(self) -> None:
        starts: dict[int, int] = {}
        offset = 0
        for values, epoch in zip(self.appended, self.epoch_of, strict=True):
            starts.setdefault(epoch, offset)
            offset += len(values)
        assert offset == self.log.end_offset
        found = self.log.epochs.starts
        assert list(found) == list(starts.items())[len(starts) - len(found) :], (found, starts)
        assert not starts or found, "no epoch is known"
        if found and self.start < offset:
            assert found[0].start_offset <= self.start, "the epoch of the first record is forgotten"

    @precondition(lambda self: not self.broken)
    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.open()
        self.flushed = len(self.appended)

    @rule()
    def kill(self) -> None:
        """SIGKILL: what was written stays written."""
        self.files.kill()
        self.log = self.open()
        if not self.broken:
            assert self.log.end_offset == sum(map(len, self.appended))
        self.after_recovery()

    @rule()
    def crash(self) -> None:
        """The machine loses power."""
        self.files.crash(self.rng)
        self.log = self.open()
        self.after_recovery()

    def after_recovery(self) -> None:
        possible = self.appended + self.failed
        ends = [0]
        for values in possible:
            ends.append(ends[-1] + len(values))
        assert self.log.end_offset in ends, "the log ends inside a batch"
        kept = ends.index(self.log.end_offset)
        assert kept >= self.flushed, "a flushed batch is lost"
        of = [*zip(self.producer_of, self.epoch_of, strict=True), *self.failed_of][:kept]
        self.producer_of, self.epoch_of = [producer for producer, _ in of], [epoch for _, epoch in of]
        self.appended, self.failed, self.failed_of = possible[:kept], [], []
        self.flushed = kept
        self.count_sequences()

    def count_sequences(self) -> None:
        """A producer sends again what was not acknowledged, under the same sequences."""
        self.next_sequence = dict.fromkeys(PRODUCERS, 0)
        for values, producer in zip(self.appended, self.producer_of, strict=True):
            if producer is not None:
                self.next_sequence[producer] += len(values)

    @precondition(lambda self: not self.broken)
    @rule(producer=st.sampled_from(PRODUCERS))
    def retry(self, producer: int) -> None:
        """The last batch of a producer is a duplicate, the next one is fresh."""
        places = [place for place, p in enumerate(self.producer_of) if p == producer]
        if not places:
            return
        last = self.appended[places[-1]]
        sequence = self.next_sequence[producer] - len(last)
        again = message(last, producer=(producer, 0, sequence))[1]
        base_offset = sum(map(len, self.appended[: places[-1]]))
        verdict = self.log.producers.check(again)
        assert isinstance(verdict, Duplicate) and verdict.base_offset == base_offset
        following = message([b"x"], producer=(producer, 0, self.next_sequence[producer]))[1]
        assert self.log.producers.check(following) == Fresh()

    @precondition(lambda self: not self.broken)
    @rule(max_bytes=st.sampled_from([1, 900, 5_000, 1 << 30]))
    def holds_what_the_list_holds(self, max_bytes: int) -> None:
        expected = [
            (offset, value) for offset, value in enumerate(itertools.chain(*self.appended)) if offset >= self.start
        ]
        assert self.log.start_offset == self.start
        assert read_all(self.log, max_bytes=max_bytes) == expected

    @precondition(lambda self: not self.broken and self.appended)
    @rule(fraction=st.floats(0, 1), max_bytes=st.sampled_from([1, 1_500, 1 << 30]), end=st.floats(0, 1))
    def reads_whole_batches_between(self, fraction: float, max_bytes: int, end: float) -> None:
        last = self.log.end_offset
        offset = self.start + int((last - self.start) * fraction)
        end_offset = offset + int((last - offset) * end)
        spans = self.log.read(offset, max_bytes=max_bytes, end_offset=end_offset)
        assert bool(spans) == (offset < end_offset)
        borders = [0]
        for values in self.appended:
            borders.append(borders[-1] + len(values))
        taken = 0
        expected = max((border for border in borders[:-1] if border <= offset), default=0)
        for span in spans:
            for header, encoded in b.walk(self.log.read_bytes(span)):
                assert header.base_offset == expected < max(end_offset, 1)
                expected = header.next_offset
                taken += len(encoded)
                assert taken <= max_bytes or taken == len(encoded), "more than asked for"
        if spans and max_bytes == 1 << 30:
            assert expected >= end_offset

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "log") or self.broken:
            return
        assert self.log.start_offset <= self.log.high_watermark <= self.log.end_offset or not self.appended
        try:
            self.log.read(self.log.end_offset + 1, max_bytes=1, end_offset=10**9)
            raise AssertionError("an offset past the end was served")
        except OffsetOutOfRange:
            pass

    @precondition(lambda self: not self.broken)
    @rule()
    def verify(self) -> None:
        assert verify(self.log) == []


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
