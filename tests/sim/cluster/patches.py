"""Puts a world in the place of the machine: for a while the product's modules see simulated threads, clocks, disks and
Ray, under the names by which they know the real ones."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import importlib
import os
import pkgutil
import random
import secrets
import shutil
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ray

import raystream
from raystream.actors import background, endpoint, hosts, lease, logs, metrics, processes
from raystream.client import consumer, fetched, loop, producer, share_consumer
from raystream.errors import Closed, RequestTimeout
from raystream.storage import files, root
from tests.sim.cluster.kernel import Kernel, Process, Waiter
from tests.sim.cluster.threads import threading_of, time_of

if TYPE_CHECKING:
    from tests.sim.cluster.world import World

_LEFT_AS_THEY_ARE = {"raystream.storage.root", "raystream.storage.files", "raystream.client.loop"}


def _product() -> Iterator[Any]:
    for found in pkgutil.walk_packages(raystream.__path__, "raystream."):
        if found.name.split(".")[1] not in ("demo", "commands", "cli"):
            module = importlib.import_module(found.name)
            if found.name not in _LEFT_AS_THEY_ARE:
                yield module


_MODULES = tuple(_product())


@contextlib.contextmanager
def in_place(world: World) -> Iterator[None]:
    """The product lives in `world`."""
    replaced = {id(real): simulated for real, simulated in _replacements(world)}
    before: list[tuple[Any, str, Any]] = []
    try:
        for module in _MODULES:
            for name, value in list(vars(module).items()):
                if not name.startswith("__") and id(value) in replaced:
                    before.append((module, name, value))
                    setattr(module, name, replaced[id(value)])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        producer._kept.clear()
        producer._open.clear()
        consumer._open.clear()
        share_consumer._open.clear()


def _replacements(world: World) -> list[tuple[Any, Any]]:
    kernel = world.kernel
    rng = kernel.rng
    quiet = SimpleNamespace(register=lambda *_: None, unregister=lambda *_: None)
    threads = threading_of(kernel)
    return [
        (threading, threads),
        *((getattr(threading, name), simulated) for name, simulated in vars(threads).items()),
        (time, time_of(kernel)),
        (ray, world.ray),
        (os, _Os(kernel)),
        (secrets, SimpleNamespace(token_hex=lambda n: rng.randbytes(n).hex(), randbits=rng.getrandbits)),
        (uuid, SimpleNamespace(uuid4=lambda: uuid.UUID(int=rng.getrandbits(128)))),
        (random, _Random(rng)),
        (shutil, SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1 << 40))),
        (atexit, quiet),
        (traceback, SimpleNamespace(print_exc=world.note_exception, print_exception=world.note_exception)),
        (sys, _Sys(world)),
        (loop.BackgroundLoop, lambda name="": SimulatedLoop(kernel)),
        (files.DiskFiles, lambda: kernel.process().machine.disk),
        (root, _Roots(kernel)),
        (endpoint.Endpoint, _NoEndpoint),
        (endpoint.machine, lambda: ""),
        (lease.Lease, lambda path, owner=False: _Lease(kernel.process().machine.leases, str(path), owner)),
        (logs, SimpleNamespace(begin=lambda: None)),
        (background.let_others_go_first, lambda: None),
        (metrics.PartitionMetrics, _NoMetrics),
        (metrics.LagMetrics, _NoMetrics),
        (processes.is_alive, lambda pid: _alive(kernel, pid) is not None),
        (processes.when_gone, lambda pid, then: _when_gone(kernel, pid, then)),
        (hosts._end_process, lambda pid: _end(kernel, pid)),
        (fetched.read_span, lambda span: _read_span(kernel, span)),
    ]


class _Os:
    """The module `os`, with the process ids and the end of a simulated process."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def getpid(self) -> int:
        return self._kernel.process().pid

    def getppid(self) -> int:
        machine = self._kernel.process().machine
        return 1 if machine is None else machine.raylet.pid

    def urandom(self, size: int) -> bytes:
        return self._kernel.rng.randbytes(size)

    def register_at_fork(self, **_: Any) -> None:
        pass

    def _exit(self, status: int) -> None:
        self._kernel.process().kill()
        self._kernel.stop_here()


class _Random:
    """The module `random`: what it draws comes from the world's seed."""

    Random = random.Random

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)


class _Sys:
    def __init__(self, world: World) -> None:
        self.stderr = SimpleNamespace(write=lambda text: world.note(text.strip()), flush=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


_LOOP: contextvars.ContextVar[SimulatedLoop | None] = contextvars.ContextVar("loop", default=None)


class SimulatedLoop(loop.BackgroundLoop):
    """A process's loop: its coroutines run on the world's."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._stopping = False
        self._failure: Exception | None = None
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        return self._kernel

    def is_current(self) -> bool:
        return not self._kernel.in_thread()

    def submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        if self._stopping:
            work.close()
            raise Closed("the connection to the cluster is closed")
        return asyncio.run_coroutine_threadsafe(work, self._kernel)

    def wait(self, future: concurrent.futures.Future[Any], timeout_s: float | None = None) -> Any:
        if not future.done():
            waiter = Waiter(self._kernel)
            future.add_done_callback(lambda _: waiter.wake())
            waiter.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        if not future.done():
            future.cancel()
            raise RequestTimeout(f"no answer within {timeout_s} s")
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("the connection to the cluster was closed meanwhile") from None

    def stop(self, timeout_s: float = 2.0) -> None:
        self._stopping = True


class _Roots:
    """The module `storage.root`, for machines that have one broker each."""

    Node = root.Node

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def prepare(self, where: Path, *, hide_from_git: bool) -> None:
        pass

    def network_file_system(self, where: Path) -> None:
        return None

    def join(self, where: Path, *, cluster: str, address: str) -> Any:
        return SimpleNamespace(release=lambda: None)

    def take_slot(self, where: Path, cluster: str, node: root.Node) -> root.Slot:
        path: Path = self._kernel.process().machine.directory / "broker-0"
        path.mkdir(parents=True, exist_ok=True)
        self._kernel.process().machine.disk.makedirs(str(path))
        return root.Slot(0, path, -1)


class _NoEndpoint:
    address = None

    def __init__(self, name: str, methods: Any) -> None:
        pass

    def stop(self) -> None:
        pass


class _NoMetrics:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class _Lease:
    """Eight bytes of a machine's memory."""

    def __init__(self, leases: dict[str, float], path: str, owner: bool) -> None:
        self._leases = leases
        self._path = path
        if owner:
            leases[path] = 0.0

    def extend(self, until_ms: float) -> None:
        self._leases[self._path] = until_ms

    def until_ms(self) -> float:
        return self._leases.get(self._path, 0.0)


def _alive(kernel: Kernel, pid: int) -> Process | None:
    process = kernel.processes.get(pid)
    return process if process is not None and process.alive else None


def _when_gone(kernel: Kernel, pid: int, then: Callable[[], None]) -> None:
    process = kernel.processes[pid]
    process.when_gone(lambda: _on_a_thread(kernel, then))


def _on_a_thread(kernel: Kernel, then: Callable[[], None]) -> None:
    kernel.thread(then)


def _end(kernel: Kernel, pid: int) -> None:
    process = _alive(kernel, pid)
    if process is not None:
        process.kill()


def _read_span(kernel: Kernel, span: Any) -> Any:
    disk = kernel.process().machine.disk
    try:
        data = disk.read(span.path, span.position, span.length)
    except FileNotFoundError as error:
        raise fetched.SpanGone(str(error)) from None
    if len(data) < span.length:
        raise fetched.SpanGone(f"{span.path} ends early")
    return data
