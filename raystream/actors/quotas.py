"""Holds clients to their quotas: what they move through a node, counted by all of its partition actors together.

As in Kafka (KIP-219) the bytes are moved first; the reply then says how long the client is to wait, and a client keeps
to that. One that does not is made to wait here, a little at a time, and refused while too many wait.

The accounts stand in a small file of the broker's directory that every actor maps: a number per client id and
direction, changed under a lock of its eight bytes. They count from the machine's last start, by its monotonic clock.
Client ids find their accounts by a hash; two that meet in one of 4,096 pay together.
"""

from __future__ import annotations

import dataclasses
import fcntl
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from raystream import messages as m
from raystream.clock import Clock
from raystream.core import quotas
from raystream.errors import Overloaded

NAME: Final = "quotas"
"""The file, beside the broker's lease."""
PARK_MS: Final = 1_000.0
"""So long one call of a client that does not wait by itself is kept waiting."""
MAX_PARKED: Final = 8
"""So many calls at a time: others keep their threads."""
_ACCOUNTS: Final = 4096
_HEAD: Final = 64
"""Bytes that say since which start of the machine the accounts count."""
_PAID: Final = struct.Struct("<d")
_SIZE: Final = _HEAD + 2 * _ACCOUNTS * _PAID.size


class Quotas:
    """One partition actor's part in it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._parking = threading.BoundedSemaphore(MAX_PARKED)
        self._accounts: dict[Path, Accounts] = {}

    def before_append(self, spec: m.ReplicaSpec, client_id: str) -> None:
        """Raises Overloaded where the client should not have come yet, and cannot be kept waiting."""
        self._hold(self._of(spec).produced(spec.quotas, client_id, 0, self._clock.monotonic_ms()), client_id)

    def appended(self, spec: m.ReplicaSpec, client_id: str, reply: m.AppendReply, size_bytes: int) -> m.AppendReply:
        """The reply with how long the client is to wait now. A batch that was there already costs nothing."""
        size_bytes = 0 if reply.duplicate else size_bytes
        wait_ms = self._of(spec).produced(spec.quotas, client_id, size_bytes, self._clock.monotonic_ms())
        return dataclasses.replace(reply, throttle_ms=wait_ms) if wait_ms else reply

    def before_fetch(self, spec: m.ReplicaSpec, client_id: str) -> None:
        """As `before_append`."""
        self._hold(self._of(spec).fetched(spec.quotas, client_id, 0, self._clock.monotonic_ms()), client_id)

    def fetched(self, spec: m.ReplicaSpec, client_id: str, reply: m.FetchReply) -> m.FetchReply:
        """The reply with how long the client is to wait now; what it is to map counts as much as bytes do."""
        size_bytes = sum(span.length for span in reply.spans) + sum(map(len, reply.chunks))
        wait_ms = self._of(spec).fetched(spec.quotas, client_id, size_bytes, self._clock.monotonic_ms())
        return dataclasses.replace(reply, throttle_ms=wait_ms) if wait_ms else reply

    def _of(self, spec: m.ReplicaSpec) -> Accounts:
        path = Path(spec.lease_path).with_name(NAME)
        with self._lock:
            if path not in self._accounts:
                self._accounts[path] = Accounts(path)
            return self._accounts[path]

    def _hold(self, wait_ms: int, client_id: str) -> None:
        if not wait_ms:
            return
        if not self._parking.acquire(blocking=False):
            raise Overloaded(f"client {client_id!r} has used up its quota: it is to wait {wait_ms:,} ms")
        try:
            self._clock.sleep_ms(min(wait_ms, PARK_MS))
        finally:
            self._parking.release()


class Accounts:
    """One node's accounts. Any thread."""

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with self._locked(0, _HEAD):
            if os.fstat(self._file).st_size < _SIZE:
                os.ftruncate(self._file, _SIZE)
            self._memory = mmap.mmap(self._file, _SIZE)
            if self._memory[:_HEAD] != (boot := _boot()):
                self._memory[:] = boot + bytes(_SIZE - _HEAD)

    def produced(self, of: Iterable[m.ClientQuota], client_id: str, size_bytes: int, now_ms: float) -> int:
        """Counts bytes that were appended (0: only looks). How many milliseconds the client is to wait."""
        quota = quotas.applying(of, client_id)
        rate = None if quota is None else quota.produce_bytes_per_s
        return 0 if rate is None else self._charge(0, client_id, size_bytes, rate, now_ms)

    def fetched(self, of: Iterable[m.ClientQuota], client_id: str, size_bytes: int, now_ms: float) -> int:
        """The same for bytes that were read."""
        quota = quotas.applying(of, client_id)
        rate = None if quota is None else quota.fetch_bytes_per_s
        return 0 if rate is None else self._charge(_ACCOUNTS, client_id, size_bytes, rate, now_ms)

    def _charge(self, first: int, client_id: str, size_bytes: int, rate: int, now_ms: float) -> int:
        account = first + zlib.crc32(client_id.encode(errors="surrogatepass")) % _ACCOUNTS
        at = _HEAD + account * _PAID.size
        with self._locked(at, _PAID.size):
            (paid_until_ms,) = _PAID.unpack_from(self._memory, at)
            if size_bytes:
                paid_until_ms = quotas.charged(paid_until_ms, now_ms, size_bytes, rate)
                _PAID.pack_into(self._memory, at, paid_until_ms)
        return int(quotas.throttle_ms(paid_until_ms, now_ms))

    @contextmanager
    def _locked(self, at: int, length: int) -> Iterator[None]:
        """Against this process's other threads and the node's other processes."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX, length, at)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, length, at)


def _boot() -> bytes:
    """Tells the machine's starts apart, where it says."""
    boot = b""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    return boot[:_HEAD].ljust(_HEAD)
