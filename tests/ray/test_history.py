"""The workload against a real cluster, a partition actor killed in the middle: the history has no anomaly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import raystream as rs
from raystream.testing.faults import Fault, FaultSchedule
from raystream.testing.history import History, Recorder, check
from raystream.testing.workload import Workload
from tests.ray.actors import pids

NAMESPACE = "raystream"
SECONDS = 5.0


def _kill_the_partition_actors() -> None:
    for pid in pids("raystream-partitions-"):
        os.kill(pid, signal.SIGKILL)


def test_a_workload_under_faults_leaves_a_clean_history(
    cluster: rs.Cluster, topic_name: Callable[[], str], scratch: Path
) -> None:
    topic = cluster.create_topic(topic_name(), partitions=3).name
    with Recorder(scratch / "history") as recorder:
        workload = Workload(cluster, topic, recorder, rejoin_s=2)
        faults = [Fault("kill the partition actors", _kill_the_partition_actors, every_s=60, first_s=SECONDS / 2)]
        with workload, FaultSchedule(faults, recorder) as schedule:
            time.sleep(SECONDS)
        workload.final_read()
    report = check(scratch / "history")
    print(report)
    assert workload.failures == []
    assert (schedule.injected, schedule.failures) == (["kill the partition actors"], [])
    assert report.ok, report
    assert report.notes == ()
    assert report.operations["send ok"] > 500
    assert report.operations["commit ok"] > 0
    assert report.operations["assign ok"] > 2
    assert sum(offset + 1 for offset in workload.highest.values()) >= report.operations["send ok"]


def test_workloads_in_two_processes_leave_one_history(
    cluster: rs.Cluster, topic_name: Callable[[], str], scratch: Path
) -> None:
    topic = cluster.create_topic(topic_name(), partitions=2).name
    script = f"""
        import time
        import raystream as rs
        from raystream.testing.history import Recorder
        from raystream.testing.workload import Workload
        with rs.connect(data_dir={cluster.data_dir!r}) as cluster, Recorder({str(scratch / "other")!r}) as recorder:
            workload = Workload(cluster, {topic!r}, recorder, producers=1, members=1, group="shared", name="other")
            with workload:
                time.sleep(2)
            raise SystemExit(len(workload.failures))
    """
    with Recorder(scratch / "own") as recorder:
        workload = Workload(cluster, topic, recorder, producers=1, members=1, group="shared")
        with workload:
            subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=90)
        workload.final_read()
    report = check(History(scratch / "own", scratch / "other"))
    assert workload.failures == []
    assert report.ok, report
    processes = {op.process for op in History(scratch / "own", scratch / "other") if op.kind == "poll" and op.records}
    assert {"member-0", "other-member-0"} & processes
