"""`raystream demo` as a newcomer runs it, and once more on what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 240


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "raystream.cli", "demo", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)


def facts(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_nothing_is_lost_and_all_of_it_is_kept(tmp_path: Path) -> None:
    data, png = tmp_path / "data", tmp_path / "delays.png"
    first = facts(demo("--json", "--data-dir", str(data), "--png", str(png)))
    assert (first["produced"], first["processed"], first["lost"]) == (336_776, 336_776, 0)
    assert first["takeover_seconds"] > 0
    assert first["statistics"]["UA"]["flights"] == 58_665
    assert png.read_bytes().startswith(b"\x89PNG")

    again = demo("--data-dir", str(data))
    assert again.returncode == 1
    assert "--resume" in again.stderr

    resumed = facts(demo("--json", "--data-dir", str(data), "--resume"))
    for name in ("produced", "processed", "lost", "reprocessed", "statistics"):
        assert resumed[name] == first[name]


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    done = demo("--data-dir", str(tmp_path / "none"), "--resume")
    assert done.returncode == 2
    assert done.stderr.startswith("raystream: there is no directory")
