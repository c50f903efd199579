"""Runs of the soak, each in a process of its own: bounded in time, judged by its history, and cleaned up after.

A run that hangs or dies is an outcome like others, and its history is checked, too. Whatever a run started is known by
a variable of its environment, and ended by process id. A run that went wrong leaves its directory: the history, what
it printed, where its threads stood, Ray's logs and the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.chaos import lost_calls, namespaces
from benchmarks.chaos.processes import end, wait_until_gone, with_environment
from benchmarks.chaos.recovery import times_to_recover
from raystream.testing.history import check

ROOT: Final = Path(__file__).parent.parent.parent
MORE_TIME_S: Final = 420.0
"""To start the cluster, to heal, to read everything twice, and to stop."""
DUMP_S: Final = 2.0
GONE_S: Final = 20.0
LOST_PERCENT: Final = 1
EVERY_S: Final = 12.0
EVERY_LONG_S: Final = 30.0
"""From one cut to the next: TCP goes on late after one, and a second one would meet it while it waits."""
ALONE: Final = (
    "leader",
    "follower",
    "broker",
    "coordinator",
    "controller",
    "pause",
    "raylet",
    "node",
    "rpc",
    "cut",
    "cut-head",
    "one-way",
)
ON_THE_NETWORK: Final = {"cut", "cut-head", "one-way"}
FAULTS: Final = (*ALONE, "mixed", "none")
IGNORED: Final = ("write-cycle",)
"""Nobody orders the writes of concurrent transactions."""


@dataclass(frozen=True)
class Outcome:
    """What one run showed. `problem` says why it did not come to its end; `kept` where everything about it lies."""

    fault: str
    seconds: float
    turn: int
    injected: dict[str, int] = field(default_factory=dict)
    not_injected: list[str] = field(default_factory=list)
    lost_calls: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    anomalies: dict[str, int] = field(default_factory=dict)
    client_errors: list[str] = field(default_factory=list)
    sends_s: dict[str, list[float]] = field(default_factory=dict)
    """After each fault, by its name, how long it took until sends to every partition were acknowledged again."""
    groups_s: dict[str, list[float]] = field(default_factory=dict)
    """The same until every group was given records again."""
    problem: str | None = None
    kept: str | None = None

    @property
    def ok(self) -> bool:
        """It came to its end, nothing is wrong with its history, and no client gave up."""
        return not (self.anomalies or self.client_errors or self.problem)


def impossible(fault: str) -> str | None:
    """Why this fault cannot be injected on this machine; None where it can."""
    return namespaces.unavailable() if fault in ON_THE_NETWORK else None


@dataclass(frozen=True)
class Plan:
    """What to run: which of several runs it is, how many seconds lie between two faults, the directory for its files
    (by default that for temporary ones), and whether they stay although nothing was wrong."""

    fault: str
    seconds: float
    turn: int = 0
    every_s: float | None = None
    where: str | None = None
    keep: bool = False


def run(plan: Plan) -> Outcome:
    """One run, which has ended after the plan's seconds and MORE_TIME_S more."""
    directory = Path(tempfile.mkdtemp(prefix="rs", dir=plan.where))
    mark = f"RAY_TMPDIR={directory}"
    try:
        problem = _start(plan, directory)
    except BaseException:
        _clean_up(mark, directory.name)
        shutil.rmtree(directory, ignore_errors=True)
        raise
    _clean_up(mark, directory.name)
    outcome = _judge(plan, directory, problem)
    if outcome.kept is None:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


def _start(plan: Plan, directory: Path) -> str | None:
    """Answers what kept it from coming to its end, or None."""
    fault, limit_s = plan.fault, plan.seconds + MORE_TIME_S
    every_s = plan.every_s or (EVERY_LONG_S if fault in ON_THE_NETWORK else EVERY_S)
    faults = [each for each in ALONE if impossible(each) is None] if fault == "mixed" else [fault]
    command = [sys.executable, "-m", "benchmarks.chaos.trial", "--seconds", str(plan.seconds)]
    command += ["--turn", str(plan.turn), "--every", str(every_s)]
    command += ["--directory", str(directory), "--fault", *(each for each in faults if each != "rpc" or fault == "rpc")]
    if (ON_THE_NETWORK | {"rpc"}).intersection(faults) and namespaces.unavailable() is None:
        command.append("--namespaces")  # calls between nodes are Ray's there; on one machine many go by sockets
    environment = {**os.environ, "RAY_TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"}
    environment["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a question that comes while all is stopped must not begin it anew
    if "rpc" in faults:
        environment[lost_calls.VARIABLE] = lost_calls.setting(LOST_PERCENT)
    with (
        open(directory / "printed", "wb") as printed,
        _ended(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)) as process,
    ):
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)  # it prints where its threads stand
            time.sleep(DUMP_S)
            return f"it had not ended after {limit_s:.0f} s"
    return None if status == 0 else f"it ended with status {status}: {_last_line(directory / 'printed')}"


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _last_line(printed: Path) -> str:
    lines = printed.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def _clean_up(mark: str, network: str) -> None:
    deadline = time.monotonic() + GONE_S
    while (left := with_environment(mark)) and time.monotonic() < deadline:
        end(left)
        wait_until_gone(left, 1.0)
    namespaces.remove(network)


def _judge(plan: Plan, directory: Path, problem: str | None) -> Outcome:
    seen = {}
    with contextlib.suppress(OSError):
        seen = json.loads((directory / "outcome.json").read_text())
    history = directory / "history"
    report = check(history, ignore=IGNORED) if history.exists() else None
    sends_s, groups_s = times_to_recover(history) if report else ({}, {})
    outcome = Outcome(
        fault=plan.fault,
        seconds=plan.seconds,
        turn=plan.turn,
        lost_calls=lost_calls.count(directory / "ray"),
        operations=report.operations if report else {},
        anomalies=dict(report.counts) if report else {},
        sends_s=sends_s,
        groups_s=groups_s,
        problem=problem,
        **seen,
    )
    if outcome.ok and not plan.keep:
        return outcome
    (directory / "report").write_text(f"{json.dumps(asdict(outcome), indent=1)}\n\n{report}\n")
    return Outcome(**{**asdict(outcome), "kept": str(directory)})
