"""What README.md shows runs as it is printed: its Python as one script, its shell as one session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
TIMEOUT_S = 180


def blocks(language: str, heading: str) -> str:
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    chosen = [text for text in section if text.startswith(heading)]
    assert len(chosen) == 1, heading
    found = re.findall(rf"^```{language}\n(.*?)^```", chosen[0], re.MULTILINE | re.DOTALL)
    assert found, heading
    return "\n".join(found)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of its own, with `raystream` on the path, no cluster in the environment and none on the machine."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RAYSTREAM_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="rs", ignore_cleanup_errors=True) as short:  # Ray's sockets lie in it
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield tmp_path


def test_python(place: Path) -> None:
    (place / "readme.py").write_text(blocks("python", "In Python"))
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=place, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


def test_shell(place: Path) -> None:
    from raystream.demo import flights

    flights.load().head(1000).to_parquet(place / "flights.parquet")
    script = "set -e\ntrap 'raystream stop' EXIT\n" + blocks("sh", "In the shell")
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len((place / "clicks.csv").read_text().splitlines()) == 501
