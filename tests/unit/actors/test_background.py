"""A thread that lets others go first keeps its niceness, and its process goes on as before."""

from __future__ import annotations

import os
import platform
import threading
from typing import Any
from unittest.mock import Mock

import pytest

from raystream.actors import background, compaction, scrubber
from raystream.clock import SystemClock
from raystream.storage.files import DiskFiles


def test_the_niceness_stays() -> None:
    seen: list[int] = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        background.let_others_go_first()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [7]


@pytest.mark.parametrize("room", ["compaction", "scrubber"])
def test_threads_whose_work_can_wait_do_so(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    module = {"compaction": compaction, "scrubber": scrubber}[room]
    monkeypatch.setattr(module, "let_others_go_first", waits.set)
    clock = SystemClock()
    worker: Any = (
        compaction.Compactor(list, clock, lambda work: work())
        if room == "compaction"
        else scrubber.Scrubber(list, DiskFiles(), clock, lambda work: work(), Mock())
    )
    worker.start()
    assert waits.wait(5)
    worker.stop()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("no system call of that number here"))
    background.let_others_go_first()
