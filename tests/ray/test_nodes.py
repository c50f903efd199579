"""Three Ray nodes with a broker each, in a process of their own: this session's driver has its own Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_three_nodes_bear_what_happens_to_them(scratch: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.ray.three_nodes", str(scratch / "data")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    print(run.stdout)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-8000:]}"
