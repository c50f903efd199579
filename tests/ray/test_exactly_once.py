"""The exactly-once run in short: three Ray nodes of its own, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 15
ROWS = 20_000


def test_a_pipeline_moves_flights_exactly_once_though_workers_leaders_and_coordinators_are_killed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos.exactly_once", "--seconds", str(SECONDS), "--rows", str(ROWS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(run.stdout)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-8000:]}"
    assert f"| rows in / out | {ROWS:,} / {ROWS:,} |" in run.stdout
    assert "| faults | 0:" not in run.stdout, "nothing was broken"
