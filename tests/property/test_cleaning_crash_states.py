"""The disk stops at each operation of a cleaning, and the machine crashes: the log opens as it was or is to be."""

from __future__ import annotations

import contextlib
import copy
import errno
import random

import pytest

from raystream.errors import StorageError
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.compacting import Row, clean, keyed, rows_in
from tests.fakes.logs import append, commit, open_log
from tests.fakes.verify import verify


def prepared() -> MemoryFiles:
    """Two clean segments of the first generation, dirty ones behind them, in a checkpoint."""
    files = MemoryFiles()
    log = open_log(files, segment_bytes=3_000)
    for i in range(24):
        append(log, keyed([(b"k%d" % ((5 * i + j) % 11), b"%d-%d" % (i, j) * 9) for j in range(3)]))
    commit(log)
    clean(log, segment_bytes=3_000)
    for i in range(12):
        append(log, keyed([(b"k%d" % ((5 * i + j) % 11), b"again-%d-%d" % (i, j)) for j in range(2)]))
    commit(log)
    log.checkpoint()
    files.kill()
    return files


def opened(pristine: MemoryFiles) -> tuple[MemoryFiles, Log]:
    """A disk and a log of their own."""
    files = copy.deepcopy(pristine)
    return files, open_log(files, segment_bytes=3_000)


def last_of(rows: list[Row]) -> dict[bytes | None, Row]:
    return {row[1]: row for row in rows}


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC])
def test_a_cleaning_that_stops_anywhere(fault: int) -> None:
    pristine = prepared()
    files, log = opened(pristine)
    wanted, before = last_of(rows_in(log)), files.operations
    assert clean(log, segment_bytes=3_000).swaps >= 1
    operations = files.operations - before
    for nth in range(1, operations + 1):
        for seed in range(6):
            files, log = opened(pristine)
            files.fail_at(nth, fault)
            with contextlib.suppress(StorageError):
                clean(log, segment_bytes=3_000)
            if seed:
                files.crash(random.Random(seed))
            else:
                files.kill()
            log = open_log(files, segment_bytes=3_000)
            where = f"operation {nth}, seed {seed}"
            assert last_of(rows_in(log)) == wanted, where
            assert verify(log) == [], where
            names = files.listdir(log.directory)
            assert not any(name.endswith(".tmp") for name in names), where
            assert sum(name.endswith(".log") for name in names) == log.segment_count, where
            clean(log, segment_bytes=3_000)
            assert last_of(rows_in(log)) == wanted, where
            append(log, keyed([(b"k0", b"next")]))
            commit(log)
            log.close()
