"""The local Ray that `start` leaves running is told from other processes, and `stop` ends just that one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from raystream.actors.processes import answers
from raystream.commands import localray
from raystream.commands.localray import LocalRay


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as running:
        yield running
        running.kill()


def remembered(root: Path, ray: LocalRay) -> None:
    (root / "local-ray.json").write_text(json.dumps(asdict(ray)))


def test_what_was_remembered_runs(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    ray = LocalRay("10.0.0.1:6379", process.pid, localray._began(process.pid))
    remembered(tmp_path, ray)
    assert localray.running(tmp_path) == ray


def test_another_process_with_the_same_id_is_not_ours(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    remembered(tmp_path, LocalRay("10.0.0.1:6379", process.pid, "Thu Jan  1 00:00:00 1970"))
    assert localray.running(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}'])
def test_a_damaged_memory_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "local-ray.json").write_text(text)
    assert localray.running(tmp_path) is None


def test_stop_ends_it_and_forgets_it(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    ray = LocalRay("10.0.0.1:6379", process.pid, localray._began(process.pid))
    remembered(tmp_path, ray)
    localray.stop(tmp_path, ray)
    assert process.wait(timeout=5) != 0
    assert localray.running(tmp_path) is None
    assert localray.current() is None


def test_stop_leaves_anothers_address_alone(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.2:6379")
    localray.stop(tmp_path, LocalRay("10.0.0.1:6379", process.pid, localray._began(process.pid)))
    assert localray.current() == "10.0.0.2:6379"


def test_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert answers(address)
    assert not answers(address)
    assert not answers("nonsense")


def test_the_token_is_shown_before_ray_is_imported_and_never_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    monkeypatch.setitem(sys.modules, "ray", sys)
    localray.use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.delitem(sys.modules, "ray")
    localray.use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
