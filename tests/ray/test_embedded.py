"""An embedded cluster: found by others on the machine, gone with its owner, all there again afterwards.

Each cluster here lives in processes of its own, so that the session's cluster is left alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(script: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=root.parent,
        env={**_environment(root), **environment},
    )


def _environment(root: Path) -> dict[str, str]:
    environment = {**os.environ, "RAYSTREAM_DATA": str(root)}
    environment.pop("RAY_ADDRESS", None)
    return environment


@contextmanager
def _owner(root: Path, script: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that owns a cluster on `root`, says so on stdout, and waits for its stdin to close."""
    text = f"""
        import sys
        import raystream as rs
        cluster = rs.connect()
        {script}
        print("ready", flush=True)
        sys.stdin.read()
        cluster.close()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(root),
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            process.stdin.close()
            process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]
        if not process.stdin.closed:  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]


_WRITE = """
    import raystream as rs
    with rs.connect() as cluster:
        cluster.create_topic("events", partitions=2, exist_ok=True)
        with cluster.producer() as producer:
            for number in range(1000):
                producer.send("events", str(number), partition=number % 2)
        consumer = cluster.consumer("events", group="g", start="earliest")
        with consumer:
            for count, record in enumerate(consumer, 1):
                if count == 600:
                    break
        print(cluster.lag("g")[0].lag + cluster.lag("g")[1].lag)
"""

_READ = """
    import raystream as rs
    with rs.connect() as cluster:
        values = sorted(int(v) for v in cluster.read("events").to_arrow()["value"].to_pylist())
        assert values == list(range(1000)), (len(values), values[:3])
        rest = 0
        with cluster.consumer("events", group="g", start="latest") as consumer:
            for record in consumer:
                rest += 1
                if rest == 400:
                    break
        print("rest", rest, cluster.health().ok)
"""


def test_everything_is_there_again_after_a_stop(tmp_path: Path) -> None:
    root = tmp_path / "data"
    first = _run(_WRITE, root)
    assert first.stdout.strip() == "400", first.stderr
    again = _run(_READ, root)
    assert again.stdout.strip() == "rest 400 True", again.stderr


def test_everything_is_there_again_after_a_kill_of_the_owner(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with _owner(root) as owner:
        written = _run(_WRITE, root)
        assert written.stdout.strip() == "400", written.stderr
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
    again = _run(_READ, root)
    assert again.stdout.strip() == "rest 400 True", again.stderr


def test_a_second_process_joins_the_first_and_learns_of_its_end(tmp_path: Path) -> None:
    root = tmp_path / "data"
    setup = 'cluster.create_topic("t"); cluster.producer().send("t", b"from the owner").result(30)'
    joiner = """
        import sys, time
        import raystream as rs
        cluster = rs.connect()
        found = cluster.read("t").to_arrow()["value"].to_pylist()
        with cluster.producer() as producer:
            producer.send("t", b"from the guest").result(30)
        print(found, flush=True)
        sys.stdin.readline()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                cluster.topics()
            except rs.ClusterGone as error:
                print("gone:", error, flush=True)
                break
            time.sleep(0.1)
    """
    with _owner(root, setup) as owner:
        guest = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(joiner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(root),
        )
        assert guest.stdout is not None
        assert guest.stdin is not None
        assert guest.stdout.readline().strip() == "[b'from the owner']"
        owner.stdin.close()  # type: ignore[union-attr]
        owner.wait(60)
        guest.stdin.write("\n")
        guest.stdin.flush()
        assert f"gone: the process that owned this cluster (pid {owner.pid}) has exited" in guest.stdout.readline()
        guest.stdin.close()
        guest.stdout.close()
        assert guest.wait(60) == 0
    after = _run('import raystream as rs\nwith rs.connect() as c: print(c.read("t").count())', root)
    assert after.stdout.strip() == "2", after.stderr


def test_a_root_that_cannot_be_joined_names_pid_and_path(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    holder = f"""
        import fcntl, json, os, sys
        lock = open({str(root / "lock")!r}, "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        owner = {{"cluster": "x", "address": "127.0.0.1:1", "pid": os.getpid(), "host": "here", "embedded": True}}
        json.dump(owner, open({str(root / "owner.json")!r}, "w"))
        print("ready", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(holder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    script = """
        import raystream as rs
        from raystream.actors import session
        session.DYING_OWNER_WAIT_S = 1.0
        try:
            rs.connect()
        except rs.DataDirectoryInUse as error:
            print(error)
    """
    refused = _run(script, root)
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
    assert str(root) in refused.stdout, refused.stderr
    assert f"pid {process.pid}" in refused.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_directory_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir(mode=0o500)
    script = """
        import raystream as rs
        try:
            rs.connect()
        except rs.DataDirectoryUnusable as error:
            print(error)
    """
    refused = _run(script, root)
    assert "cannot be written" in refused.stdout


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.write_text("")
    script = """
        import raystream as rs
        try:
            rs.connect()
        except rs.DataDirectoryUnusable as error:
            print(error)
    """
    started = time.monotonic()
    refused = _run(script, root)
    assert str(root) in refused.stdout, refused.stderr
    assert time.monotonic() - started < 60
