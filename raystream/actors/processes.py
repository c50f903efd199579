"""Whether processes live and addresses answer, known at once and without asking Ray."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

POLL_S: Final = 0.1


def is_alive(pid: int) -> bool:
    """Whether a process with that id runs on this machine (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def when_gone(pid: int, then: Callable[[], None]) -> None:
    """Calls `then` on a thread of its own as soon as the process is gone (at once if it is gone already)."""

    def wait() -> None:
        _wait_until_gone(pid)
        then()

    threading.Thread(target=wait, name=f"raystream-watch-{pid}", daemon=True).start()


def _wait_until_gone(pid: int) -> None:
    if not hasattr(os, "pidfd_open"):
        while is_alive(pid):
            time.sleep(POLL_S)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    finally:
        os.close(descriptor)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return False


def answers(address: str) -> bool:
    """Whether something listens at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def same_host(one: str, other: str) -> bool:
    """Whether two names may be of one machine, as far as they are resolved here; a loopback one may be any's."""
    ours, theirs = _addresses(one), _addresses(other)
    loopback = any(address.startswith("127.") or address == "::1" for address in ours | theirs)
    return one == other or loopback or bool(ours & theirs)


def _addresses(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
