"""A thread that lets others go first keeps its niceness, and its process goes on as before."""

from __future__ import annotations

import os
import platform
import threading

import pytest

from raystream.actors import background


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


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("no system call of that number here"))
    background.let_others_go_first()
