"""Who may use a data root: one live cluster, and inside it one broker per slot.

    <root>/lock            flock: exclusive by the owner of an embedded cluster, shared by a Ray cluster's brokers
    <root>/owner.json      who that is: Ray address, pid, host
    <root>/broker-N/lock   flock by the broker that lives in the slot
    <root>/broker-N/slot.json   that broker's pid and cluster

Locks end with their process, so that a kill -9 leaves nothing to clean up; the JSON files only say whom to name.
These are claims between processes, not log data: they stand outside the file seam of `files.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from raystream.errors import DataDirectoryInUse, DataDirectoryUnusable

DYING_OWNER_WAIT_S: Final = 10.0
MAX_SLOTS: Final = 1024
PAGE_BYTES: Final = 4096
_NETWORK_FILE_SYSTEMS: Final = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "9p", "glusterfs"}


@dataclass(frozen=True)
class Owner:
    """The live cluster that a data root belongs to. `cluster` tells one life of a Ray cluster from another."""

    cluster: str
    address: str
    pid: int
    host: str
    embedded: bool


class RootClaim:
    """A data root held by this process, until `release` or the process's end."""

    def __init__(self, root: Path, descriptor: int, *, alone: bool) -> None:
        self._root = root
        self._descriptor = descriptor
        self._alone = alone
        os.register_at_fork(after_in_child=self._close)

    def publish(self, *, cluster: str, address: str, embedded: bool) -> None:
        """States the owner, for others to join or to name."""
        owner = Owner(cluster, address, os.getpid(), socket.gethostname(), embedded)
        _write_json(self._root / "owner.json", asdict(owner))

    def release(self) -> None:
        """Gives the root back; the data stays."""
        if self._alone and self._descriptor >= 0:
            (self._root / "owner.json").unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def prepare(root: Path, *, hide_from_git: bool) -> None:
    """Makes the root's directory. Raises DataDirectoryUnusable with what stands in the way."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if hide_from_git and not (root / ".gitignore").exists():
            (root / ".gitignore").write_text("*\n")
        probe = root / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(root, error) from None


def require_room(root: Path) -> None:
    """Raises DataDirectoryUnusable where not even a page can be written."""
    probe = root / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(bytes(PAGE_BYTES))
    except OSError as error:
        raise _unwritable(root, error) from None
    finally:
        probe.unlink(missing_ok=True)


def _unwritable(directory: Path, error: OSError) -> DataDirectoryUnusable:
    return DataDirectoryUnusable(f"the data directory {directory} cannot be written: {error.strerror}")


def claim(root: Path) -> RootClaim | None:
    """Takes the root for an embedded cluster, or None while another process holds it. Never waits."""
    descriptor = _open_lock(root)
    if _try_lock(descriptor, fcntl.LOCK_EX):
        return RootClaim(root, descriptor, alone=True)
    os.close(descriptor)
    return None


def join(root: Path, *, cluster: str, address: str) -> RootClaim:
    """Takes a share of the root for a broker of the Ray cluster `cluster`. Raises DataDirectoryInUse.

    The first broker of a cluster makes the root the cluster's; brokers of the same cluster share it.
    """
    deadline = time.monotonic() + DYING_OWNER_WAIT_S
    descriptor = _open_lock(root)
    while True:
        if _try_lock(descriptor, fcntl.LOCK_EX):
            claimed = RootClaim(root, descriptor, alone=False)
            claimed.publish(cluster=cluster, address=address, embedded=False)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return claimed
        owner = read_owner(root)
        if owner is not None and owner.cluster == cluster and _try_lock(descriptor, fcntl.LOCK_SH):
            return RootClaim(root, descriptor, alone=False)
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise in_use(root, owner)
        time.sleep(0.05)


def read_owner(root: Path) -> Owner | None:
    """Who published itself last; says nothing about whether it lives."""
    try:
        return Owner(**json.loads((root / "owner.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def in_use(root: Path, owner: Owner | None) -> DataDirectoryInUse:
    """The error that names who holds the root."""
    if owner is None:
        return DataDirectoryInUse(f"the data directory {root} is held by another process; {root / 'lock'} is locked")
    return DataDirectoryInUse(
        f"the data directory {root} belongs to a running cluster at {owner.address} "
        f"(pid {owner.pid} on {owner.host}): stop that, or choose another data_dir",
        pid=owner.pid,
        path=str(root),
        address=owner.address,
    )


@dataclass(frozen=True)
class Node:
    """The Ray node that a broker lives on, and how to tell whether the process that is a node still runs."""

    node_id: str
    raylet_pid: int
    is_alive: Callable[[int], bool]


@dataclass(frozen=True)
class Slot:
    """A broker's own directory inside the root, locked."""

    number: int
    path: Path
    descriptor: int


def take_slot(root: Path, cluster: str, node: Node | None = None) -> Slot:
    """The slot that this Ray node had before in this life of the cluster; else the first one that no living broker of
    the cluster holds, nor had on another node that lives.

    A slot held by a process of an earlier life is waited for: that process is dying, and the data is ours.
    """
    own = node or Node("", 0, lambda _: False)
    deadline = time.monotonic() + DYING_OWNER_WAIT_S
    for number in _slots_in_order(root, cluster, own):
        path = root / f"broker-{number}"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(root, error) from None
        descriptor = _open_lock(path)
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            holder = _read_json(path / "slot.json")
            if holder.get("cluster") == cluster and (not own.node_id or holder.get("node") != own.node_id):
                break
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise DataDirectoryInUse(
                    f"{path} is still locked by pid {holder.get('pid', 'unknown')} of an earlier cluster: end it first",
                    pid=holder.get("pid"),
                    path=str(path),
                )
            time.sleep(0.05)
        else:
            holding = {"cluster": cluster, "node": own.node_id, "raylet": own.raylet_pid, "pid": os.getpid()}
            _write_json(path / "slot.json", holding)
            return Slot(number, path, descriptor)
        os.close(descriptor)
    raise DataDirectoryInUse(f"all {MAX_SLOTS} broker slots in {root} are taken")


def _slots_in_order(root: Path, cluster: str, own: Node) -> list[int]:
    holders = [_read_json(root / f"broker-{number}" / "slot.json") for number in range(_slots_made(root) + 1)]
    same_life = [holder if holder.get("cluster") == cluster else {} for holder in holders]
    mine = [number for number, holder in enumerate(same_life) if own.node_id and holder.get("node") == own.node_id]

    def is_anothers(holder: dict[str, Any]) -> bool:
        return bool(own.node_id and holder.get("node")) and own.is_alive(int(holder.get("raylet", 0)))

    free = [n for n, holder in enumerate(same_life) if n not in mine and not is_anothers(holder)]
    return [*mine, *free, *range(len(holders), MAX_SLOTS)]


def _slots_made(root: Path) -> int:
    return sum(1 for number in range(MAX_SLOTS) if (root / f"broker-{number}").is_dir())


def network_file_system(root: Path) -> str | None:
    """The type of the network file system that `root` lies on, or None. Linux only."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    resolved = str(root.resolve())
    best = max(
        (entry for entry in mounts if resolved.startswith(entry[1].rstrip("/") + "/")),
        key=lambda entry: len(entry[1]),
        default=None,
    )
    return best[2] if best is not None and best[2] in _NETWORK_FILE_SYSTEMS else None


def _open_lock(directory: Path) -> int:
    try:
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataDirectoryUnusable(f"{directory / 'lock'} cannot be opened: {error.strerror}") from None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path.parent, error) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value
