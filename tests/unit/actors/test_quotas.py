"""Accounts that a node's processes share, and what clients are told."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raystream import messages as m
from raystream.actors import quotas as shared
from raystream.actors.quotas import Accounts, Quotas
from raystream.clock import ManualClock
from raystream.errors import Overloaded

RATES = (m.ClientQuota(client_id="etl", produce_bytes_per_s=1000, fetch_bytes_per_s=2000),)
NOW_MS = 100_000.0


def spec(directory: Path) -> m.ReplicaSpec:
    return m.ReplicaSpec(
        topic="t",
        topic_id="a" * 32,
        partition=0,
        directory=str(directory),
        leader_epoch=0,
        incarnation=0,
        config={},
        schemas=(),
        lease_path=str(directory / "lease"),
        quotas=RATES,
    )


APPENDED = m.AppendReply(base_offset=0, append_time_ms=0, leader_epoch=0, high_watermark=1)


def fetched(*sizes: int) -> m.FetchReply:
    spans = tuple(m.Span("f", 0, size, 1) for size in sizes)
    return m.FetchReply(
        spans=spans, chunks=(bytes(100),), high_watermark=1, last_stable_offset=1, log_start_offset=0, leader_epoch=0
    )


def test_actors_of_one_node_count_together(tmp_path: Path) -> None:
    one, other = Accounts(tmp_path / "quotas"), Accounts(tmp_path / "quotas")
    assert one.produced(RATES, "etl", 1000, NOW_MS) == 0
    assert other.produced(RATES, "etl", 500, NOW_MS) == 500
    assert one.produced(RATES, "etl", 0, NOW_MS) == 500, "looking costs nothing"
    assert one.fetched(RATES, "etl", 2000, NOW_MS) == 0, "reading has an account of its own"
    assert one.produced(RATES, "another", 10**9, NOW_MS) == 0


def test_processes_and_threads_lose_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "quotas"
    accounts = Accounts(path)
    program = (
        "import sys\n"
        "from raystream import messages as m\n"
        "from raystream.actors.quotas import Accounts\n"
        "rates = (m.ClientQuota(client_id='etl', produce_bytes_per_s=1000),)\n"
        "accounts = Accounts(sys.argv[1])\n"
        f"for _ in range(500): accounts.produced(rates, 'etl', 1, {NOW_MS})\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda: [accounts.produced(RATES, "etl", 1, NOW_MS) for _ in range(500)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in others] == [0, 0]
    assert accounts.produced(RATES, "etl", 0, NOW_MS) == 4 * 500 - 1000


def test_accounts_of_the_machines_earlier_life_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Accounts(tmp_path / "quotas").produced(RATES, "etl", 9000, NOW_MS) == 8000
    monkeypatch.setattr(shared, "_boot", lambda: b"another boot".ljust(64))
    assert Accounts(tmp_path / "quotas").produced(RATES, "etl", 0, NOW_MS) == 0


def test_replies_say_how_long_to_wait(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(int(NOW_MS))
    quotas = Quotas(clock)
    assert quotas.appended(spec(tmp_path), "etl", APPENDED, 1000).throttle_ms == 0
    assert quotas.appended(spec(tmp_path), "etl", APPENDED, 700).throttle_ms == 700
    again = m.AppendReply(base_offset=0, append_time_ms=0, leader_epoch=0, high_watermark=1, duplicate=True)
    assert quotas.appended(spec(tmp_path), "etl", again, 700).throttle_ms == 700, "a repetition costs nothing"
    assert quotas.fetched(spec(tmp_path), "etl", fetched(2000, 900)).throttle_ms == 500, "mapped bytes count as others"
    assert quotas.fetched(spec(tmp_path), "free", fetched(10**9)).throttle_ms == 0


def test_who_does_not_wait_by_itself_waits_here_a_little_and_others_keep_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    clock.advance(int(NOW_MS))
    quotas = Quotas(clock)
    quotas.before_append(spec(tmp_path), "etl")
    assert clock.monotonic_ms() == NOW_MS
    quotas.appended(spec(tmp_path), "etl", APPENDED, 10_000)
    quotas.before_append(spec(tmp_path), "etl")
    assert clock.monotonic_ms() == NOW_MS + shared.PARK_MS
    inside, leave = threading.Barrier(shared.MAX_PARKED + 1), threading.Event()

    def sleep_ms(_duration_ms: float) -> None:
        inside.wait(20)
        leave.wait(20)

    monkeypatch.setattr(clock, "sleep_ms", sleep_ms)
    waiting = [
        threading.Thread(target=quotas.before_append, args=(spec(tmp_path), "etl")) for _ in range(shared.MAX_PARKED)
    ]
    for thread in waiting:
        thread.start()
    inside.wait(20)
    with pytest.raises(Overloaded, match="'etl' has used up its quota: it is to wait 8,000 ms"):
        quotas.before_append(spec(tmp_path), "etl")
    quotas.before_append(spec(tmp_path), "free")
    leave.set()
    for thread in waiting:
        thread.join(20)
