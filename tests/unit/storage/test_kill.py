"""A real process, killed with SIGKILL in the middle of appending, rolling, checkpointing and deleting."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raystream.errors import DataDirectoryInUse
from raystream.storage.files import DiskFiles
from tests.fakes.logs import append, commit, message, open_log, read_all
from tests.fakes.verify import verify

ROOT = Path(__file__).parents[3]
WRITER = textwrap.dedent(
    """
    import sys
    from raystream.clock import SystemClock
    from raystream.storage.files import DiskFiles
    from raystream.storage import checkpointing
    from tests.fakes.logs import append, commit, message, open_log

    checkpointing.CHECKPOINT_BYTES = 20_000
    log = open_log(DiskFiles(), sys.argv[1], clock=SystemClock(), segment_bytes=60_000)
    print("open", log.end_offset, flush=True)
    while True:
        at = log.end_offset
        batches = [[b"%d" % (at + 3 * i + j) for j in range(3)] for i in range(4)]
        append(log, *[message(values) for values in batches])
        print(commit(log), flush=True)
        log.maybe_checkpoint()
        if at - log.start_offset > 900:
            log.delete_before(at - 600)
    """
)


@pytest.mark.parametrize("acknowledgements", [1, 40, 150])
def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path, acknowledgements: int) -> None:
    directory = f"{tmp_path}/p"
    end = 0
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout is not None
        assert int(writer.stdout.readline().split()[1]) >= end
        for _ in range(acknowledgements):
            end = int(writer.stdout.readline())
        with pytest.raises(DataDirectoryInUse, match=f"pid {writer.pid}"):
            open_log(DiskFiles(), directory)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")[:-1]  # what it acknowledged until the signal reached it
        end = int(rest[-1]) if rest else end
        writer.stdout.close()
        writer.wait()
        log = open_log(DiskFiles(), directory)
        assert log.end_offset >= end and log.end_offset % 3 == 0
        rows = read_all(log)
        assert rows == [(offset, b"%d" % offset) for offset in range(log.start_offset, log.end_offset)]
        assert verify(log) == []
        append(log, *[message([b"%d" % (log.end_offset + j) for j in range(3)])])
        end = commit(log)
        log.close()
