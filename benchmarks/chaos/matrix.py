"""The whole fault matrix of the soak, in the background for hours, as a table.

python -m benchmarks.chaos.matrix --out table.md [--seconds 120] [--runs 3] [--mixed-seconds 600]

Every fault alone, then all of them mixed. After each run one line of JSON is added to `table.jsonl` beside the table,
and the table is written anew: what stands there already is not run again. A fault that cannot be injected on this
machine stands in the table with the reason. Exits with 1 where a run was not in order; the table says where its files
are.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.chaos.runs import ALONE, Outcome, Plan, impossible, run

STOP: Final = 130
HEAD: Final = (
    "fault",
    "runs × seconds",
    "faults injected",
    "sends acknowledged / unknown",
    "polls",
    "commits",
    "transactions ended / queue acknowledgements",
    "anomalies",
    "client errors",
    "sends go on after: median / longest",
    "groups go on after: median / longest",
)
WHAT: Final = {
    "none": "nothing, for comparison",
    "leader": "SIGKILL of a leader's actor",
    "follower": "SIGKILL of a follower's actor",
    "broker": "SIGKILL of a leader's broker",
    "coordinator": "SIGKILL of the coordinator",
    "controller": "SIGKILL of the controller's broker",
    "pause": "SIGSTOP of a leader and its broker for 5 s, past the lease",
    "raylet": "SIGKILL of a raylet, another node started with its disk",
    "node": "a raylet and all its workers killed, another node started with their disk",
    "rpc": "calls that Ray loses",
    "cut": "routes of one node, or between two, cut for 8 s",
    "cut-head": "routes of Ray's head and all clients cut for 8 s",
    "one-way": "routes to or from one node cut for 8 s",
    "mixed": "all of these, calls lost all the time",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--mixed-seconds", type=float, default=600.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--faults", default=",".join(("none", *ALONE, "mixed")))
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--lock", type=Path, help="a file whose lock (flock) is held during each run")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOP))  # so that everything is cleaned up
    faults = args.faults.split(",")
    kept = args.out.with_suffix(".jsonl")
    outcomes = _read(kept)
    done = {(outcome.fault, outcome.seconds, outcome.turn) for outcome in outcomes}
    for turn in range(args.runs):
        for fault in faults:
            seconds = args.mixed_seconds if fault == "mixed" else args.seconds
            if (fault, seconds, turn) in done or impossible(fault) is not None:
                continue
            with _locked(args.lock):
                outcome = run(Plan(fault, seconds, turn, where=args.data_dir))
            outcomes.append(outcome)
            with open(kept, "a") as lines:
                lines.write(json.dumps(asdict(outcome)) + "\n")
            args.out.write_text(table(faults, outcomes))
            print(f"{fault} {turn}: {'in order' if outcome.ok else f'NOT IN ORDER, see {outcome.kept}'}", flush=True)
    args.out.write_text(table(faults, outcomes))
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _read(path: Path) -> list[Outcome]:
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def table(faults: Iterable[str], outcomes: Iterable[Outcome]) -> str:
    """Markdown: a line for each fault, and below it what was not in order."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault, outcome.seconds), []).append(outcome)
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for fault in faults:
        lines += [_row(of_one) for (name, _), of_one in sorted(groups.items()) if name == fault]
        if (why := impossible(fault)) is not None:
            lines.append(f"| {WHAT[fault]} | not run: {why} |" + " |" * (len(HEAD) - 2))
    for of_one in groups.values():
        lines += [line for outcome in of_one for line in _trouble(outcome)]
    return "\n".join(lines) + "\n"


def _row(outcomes: list[Outcome]) -> str:
    first = outcomes[0]
    operations: Counter[str] = Counter()
    anomalies: Counter[str] = Counter()
    for outcome in outcomes:
        operations.update(outcome.operations)
        anomalies.update(outcome.anomalies)
    hung = sum(outcome.problem is not None for outcome in outcomes)
    injected = sum(sum(outcome.injected.values()) for outcome in outcomes if outcome.fault not in {"rpc", "none"})
    lost_calls = sum(outcome.lost_calls for outcome in outcomes)
    cells = (
        WHAT[first.fault],
        f"{len(outcomes)} × {first.seconds:.0f}",
        f"{injected:,}" + (f", {lost_calls:,} calls lost" if lost_calls else ""),
        f"{operations['send ok']:,} / {operations['send info']:,}",
        f"{operations['poll ok']:,}",
        f"{operations['commit ok']:,}",
        f"{operations['end ok']:,} / {operations['settle ok']:,}",
        (", ".join(f"{count:,} {name}" for name, count in anomalies.items()) or "0")
        + (f"; {hung} not ended" if hung else ""),
        f"{sum(len(outcome.client_errors) for outcome in outcomes):,}",
        _waits([outcome.sends_s for outcome in outcomes]),
        _waits([outcome.groups_s for outcome in outcomes]),
    )
    return "| " + " | ".join(cells) + " |"


def _waits(of_runs: list[dict[str, list[float]]]) -> str:
    waits = [wait for by_fault in of_runs for of_one in by_fault.values() for wait in of_one]
    return f"{statistics.median(waits):.2f} / {max(waits):.2f} s" if waits else ""


def _trouble(outcome: Outcome) -> Iterator[str]:
    if not outcome.ok:
        said = [outcome.problem, outcome.anomalies, outcome.client_errors, outcome.kept]
        yield f"\n{outcome.fault}, run {outcome.turn}: " + "; ".join(str(each) for each in said if each)
    if outcome.not_injected:
        yield f"\n{outcome.fault}, run {outcome.turn}, not injected: " + "; ".join(outcome.not_injected)


if __name__ == "__main__":
    sys.exit(main())
