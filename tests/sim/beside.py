"""Runs of simulated worlds in processes of their own, beside the other tests.

They take minutes of processor time and wait for nobody, while tests on Ray mostly wait. So in a run of all tests they
begin at once, with what the processors have left, and their own tests, which come last, ask what became of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

Arguments = tuple[str, ...]
Done = tuple[int, str]
"""Exit status, and all that was said."""


class Worlds:
    """What was begun runs one after the other."""

    def __init__(self) -> None:
        self._begun: dict[Arguments, Future[Done]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="worlds")
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def begin(self, runs: Iterable[Arguments]) -> None:
        """Starts them, with the lowest priority there is."""
        for arguments in runs:
            self._begun[arguments] = self._threads.submit(self._run, arguments, idle=True)

    def told(self, *arguments: str) -> Done:
        """What became of a run, which may have to begin yet."""
        begun = self._begun.get(arguments)
        return self._run(arguments) if begun is None else begun.result()

    def stop(self) -> None:
        """Ends what runs."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _run(self, arguments: Arguments, *, idle: bool = False) -> Done:
        command = [sys.executable, "-W", "ignore", "-m", *arguments]
        with subprocess.Popen(
            command,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            self._running.add(process)
            if self._stopped:
                self.stop()
            if idle and hasattr(os, "SCHED_IDLE"):  # what it starts inherits it
                os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
            said, _ = process.communicate()
            self._running.discard(process)
        return process.returncode, said


worlds = Worlds()
