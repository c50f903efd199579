"""Recording from threads and processes, and reading back what was recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import Closed, InvalidArgument
from raystream.testing.faults import Fault, FaultSchedule
from raystream.testing.history import History, Operation, Recorder, check
from raystream.testing.operations import from_line, to_line


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "history"
    begun = time.monotonic_ns()
    with Recorder(path) as recorder:
        recorder.invoke("p", "send", topic="t", key="k", value="é\n1")
        recorder.ok("p", "send", topic="t", key="k", value="é\n1", partition=2, offset=7)
        recorder.ok("c", "poll", records=[("t", 2, 7, "é\n1")])
        recorder.info("c", "commit", group="g", offsets=[("t", 2, 8)], error="RequestTimeout()")
        recorder.fail("c", "commit", group="g", offsets=[("t", 2, 8)])
    sent, acknowledged, polled, committed, refused = History(path)
    assert begun <= sent.time <= acknowledged.time <= polled.time <= time.monotonic_ns()
    assert sent[1:] == Operation(0, "p", "invoke", "send", topic="t", key="k", value="é\n1")[1:]
    assert (acknowledged.type, acknowledged.partition, acknowledged.offset) == ("ok", 2, 7)
    assert [tuple(record) for record in polled.records] == [("t", 2, 7, "é\n1")]
    assert (committed.type, committed.group, committed.error) == ("info", "g", "RequestTimeout()")
    assert refused.type == "fail"


@given(st.text(), st.text() | st.integers(), st.integers(0, 2**63))
def test_a_line_is_one_line(process: str, value: str | int, offset: int) -> None:
    line = to_line({"time": 1, "process": process, "type": "ok", "kind": "send", "value": value, "offset": offset})
    assert line.count("\n") == 1
    assert from_line(line) == Operation(1, process, "ok", "send", value=value, offset=offset)


def test_threads_share_a_recorder_and_its_lines_stand_in_order(tmp_path: Path) -> None:
    def write(recorder: Recorder, process: str) -> None:
        for number in range(500):
            recorder.invoke(process, "send", topic="t", value=f"{process}-{number}")

    with Recorder(tmp_path / "history") as recorder:
        threads = [threading.Thread(target=write, args=(recorder, f"p{n}")) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    operations = list(History(tmp_path / "history"))
    assert [op.time for op in operations] == sorted(op.time for op in operations)
    assert len({op.value for op in operations}) == 2000
    assert check(operations).operations == {"send invoke": 2000}


def test_files_of_several_processes_merge_by_time_and_a_killed_one_loses_no_line(tmp_path: Path) -> None:
    script = """
        import sys
        from raystream.testing.history import Recorder
        recorder = Recorder(sys.argv[1])
        number = 0
        while True:
            recorder.invoke("child", "send", topic="t", value=f"child-{number}")
            print(number, flush=True)
            number += 1
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "child")]
    with (
        Recorder(tmp_path / "own") as recorder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as child,
    ):
        assert child.stdout is not None
        for number in range(50):
            child.stdout.readline()
            recorder.invoke("own", "send", topic="t", value=f"own-{number}")
        child.send_signal(signal.SIGKILL)
        last = [49, *map(int, child.stdout.read().split())][-1]
    history = History(tmp_path / "own", tmp_path / "child")
    operations = list(history)
    assert [op.time for op in operations] == sorted(op.time for op in operations)
    assert {op.process for op in operations[:-1]} == {"own", "child"}
    assert f"child-{last}" in {op.value for op in operations}
    assert list(history) == operations, "it can be read again"


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with Recorder(path) as recorder:
        recorder.invoke("p", "send", topic="t", value="1")
        recorder.invoke("p", "send", topic="t", value="2")
    os.truncate(path, path.stat().st_size - 1)
    assert [op.value for op in History(path)] == ["1"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"time":1,"process":"p","type":"ok","kind":"send","colour":1}'])
def test_a_line_that_is_no_operation_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history"
    path.write_text(f"{to_line({'time': 1, 'process': 'p', 'type': 'ok', 'kind': 'crash'})}{line}\n")
    with pytest.raises(InvalidArgument, match="history, line 2"):
        list(History(path))


def test_a_history_needs_a_file() -> None:
    with pytest.raises(InvalidArgument, match="needs a file"):
        History()


def test_the_recorder_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "history")
    with pytest.raises(InvalidArgument, match="knows no colour"):
        recorder.ok("p", "send", colour="red")
    with pytest.raises(InvalidArgument, match="knows no paint"):
        recorder.ok("p", "paint")  # type: ignore[arg-type]
    recorder.close()
    recorder.close()
    with pytest.raises(Closed):
        recorder.ok("p", "crash")


def test_an_operation_shows_itself_in_one_line() -> None:
    records = [("t", 0, n, f"v{n}") for n in range(9)]
    shown = str(Operation(1_500_000_000, "c", "ok", "poll", group="g", records=records))
    assert shown == "1.500000 c ok poll group=g records=9, ('t', 0, 0, 'v0') … ('t', 0, 8, 'v8')"


def test_recording_keeps_up_with_fifty_thousand_operations_a_second(tmp_path: Path) -> None:
    """Held to a fifth of it, because this machine may be busy."""
    with Recorder(tmp_path / "history") as recorder:
        begun = time.perf_counter()
        for number in range(5_000):
            recorder.invoke("p", "send", topic="t", key="k", value=f"p-{number}")
            recorder.ok("p", "send", topic="t", key="k", value=f"p-{number}", partition=0, offset=number)
        seconds = time.perf_counter() - begun
    assert 10_000 / seconds > 10_000


def test_faults_come_when_they_are_due_and_one_that_raises_stops_nothing(tmp_path: Path) -> None:
    done = threading.Event()
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        if calls.count("slow") == 3:
            done.set()

    def broken() -> None:
        calls.append("broken")
        raise ValueError("no such victim")

    with Recorder(tmp_path / "history") as recorder:
        faults = [Fault("slow", slow, every_s=0.02), Fault("broken", broken, every_s=60, first_s=0)]
        with FaultSchedule(faults, recorder) as schedule:
            assert done.wait(10)
    assert calls[0] == "broken" and calls.count("broken") == 1
    assert schedule.injected == calls
    assert [str(error) for error in schedule.failures] == ["no such victim"]
    report = check(tmp_path / "history")
    assert report.ok
    assert report.operations == {"fault info": len(calls), "fault invoke": len(calls)}
