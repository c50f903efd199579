"""The local Ray that `raystream start` leaves running; the data directory remembers it, so `stop` ends just that."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from raystream.errors import ClusterNotFound, RequestTimeout

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1
_RAY: Final = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class LocalRay:
    """A Ray head that this machine runs for us. `began` tells its process from a later one with the same id."""

    address: str
    pid: int
    began: str


def start(root: Path) -> LocalRay:
    """Starts Ray on this machine and waits until it is up. Raises ClusterNotFound with what Ray said."""
    from raystream.actors.session import EMBEDDED_INLINE_BYTES

    port = _free_port()
    log = root / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(*_RAY, "start", "--head", "--block", "--port", str(port)),
                *("--system-config", json.dumps({"max_direct_call_object_size": EMBEDDED_INLINE_BYTES})),
                *("--disable-usage-stats", "--log-style", "record"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # raystream is stopped before Ray is, so nothing is left for Ray to drain.
            env={"RAY_worker_niceness": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **os.environ},
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (address := current() or "").endswith(f":{port}"):  # Ray writes it once its processes are up
        if process.poll() is not None:
            raise ClusterNotFound(f"Ray did not start ({_last_line(log)}); {log} says more")
        if time.monotonic() > deadline:
            process.terminate()
            raise RequestTimeout(f"Ray was not up within {START_TIMEOUT_S:.0f} s; {log} says more")
        time.sleep(_POLL_S)
    ray = LocalRay(address, process.pid, _began(process.pid))
    _file(root).write_text(json.dumps(asdict(ray)))
    return ray


def running(root: Path) -> LocalRay | None:
    """The local Ray that was started for this data directory, if it still runs."""
    try:
        ray = LocalRay(**json.loads(_file(root).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return ray if ray.began and _began(ray.pid) == ray.began else None


def stop(root: Path, ray: LocalRay) -> None:
    """Ends that Ray and nothing else, and waits until its processes are gone. Raises RequestTimeout."""
    os.kill(ray.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _began(ray.pid) == ray.began:
        if time.monotonic() > deadline:
            raise RequestTimeout(f"Ray (pid {ray.pid}) still runs {STOP_TIMEOUT_S:.0f} s after SIGTERM")
        time.sleep(_POLL_S)
    _file(root).unlink(missing_ok=True)
    if current() == ray.address:
        with contextlib.suppress(OSError):
            _address_file().unlink()


def current() -> str | None:
    """The address that the last `ray start` on this machine left; says nothing about whether it still runs."""
    try:
        return _address_file().read_text().strip() or None
    except OSError:
        return None


def use_token(*, make: bool = False) -> None:
    """Shows Ray the token in the home directory, as this machine's clusters ask for it: Ray itself shows it to none
    whose address it is told. `make` makes one, as a Ray that listens should have. Does nothing once Ray is imported:
    Ray has read the environment by then, and what it starts would ask for a token that itself does not show."""
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return
    token = Path.home() / ".ray" / "auth_token"
    if make and not token.exists():
        subprocess.run([*_RAY, "get-auth-token", "--generate"], capture_output=True, check=False)
    if token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"


def _address_file() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


def _file(root: Path) -> Path:
    return root / "local-ray.json"


def _began(pid: int) -> str:
    """When the process started, as `ps` says it; empty where there is none, or only its zombie."""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    state, _, began = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
