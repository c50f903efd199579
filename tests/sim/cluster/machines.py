"""Machines with a disk, clocks and a Ray node each, and the network between them."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raystream.errors import DataDirectoryInUse
from raystream.storage.memory_files import MemoryFiles, MemoryLock
from tests.sim.cluster.kernel import Kernel, Process

DRIVER = "driver"


class SimulatedDisk(MemoryFiles):
    """A disk that takes time to sync, whose locks end with the process that holds them."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel
        self._owners: dict[str, Process] = {}
        self.slow_syncs = 0.0
        """How likely a sync takes very long."""
        self.before_sync: Callable[[str], None] = lambda path: None

    def _begin(self, doing: str, path: str) -> None:
        if doing == "sync":
            self.before_sync(path)
            if self._kernel.in_thread():
                rng = self._kernel.rng
                slow = rng.random() < self.slow_syncs
                self._kernel.sleep(rng.uniform(0.05, 0.4) if slow else rng.uniform(0.0003, 0.004))
        super()._begin(doing, path)

    def lock(self, path: str) -> MemoryLock:
        owner = self._owners.get(path)
        if owner is not None and owner.alive and path in self._locked:
            raise DataDirectoryInUse(f"{path} is locked by {owner}", path=path)
        self._locked.discard(path)
        self._owners[path] = self._kernel.process()
        return super().lock(path)

    def fail_soon(self, rng: random.Random) -> None:
        """One of the next operations fails as those of bad hardware do."""
        self.fail_at(rng.randint(1, 12), errno.EIO)


class Machine:
    """A machine, and the Ray node on it while it is up. `directory` is real, for small files that are no log's."""

    def __init__(self, kernel: Kernel, name: str, directory: Path, rack: str = "") -> None:
        self._kernel = kernel
        self.name = name
        self.directory = directory
        self.rack = rack
        self.disk = SimulatedDisk(kernel)
        self.leases: dict[str, float] = {}
        self.clock_offset_s = kernel.rng.uniform(0, 1e5)
        self.wall_offset_s = kernel.rng.uniform(-2, 2)
        self.head = False
        self.up = False
        self.node_id = ""
        self.raylet: Process
        self.starts = 0
        self.noticed_s = 0.0
        """Until when Ray takes its last node for alive, where it is not up."""

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Its raylet joins the Ray cluster as a new node."""
        self.starts += 1
        self.up = True
        self.node_id = f"{self._kernel.rng.getrandbits(96):024x}{self.starts:032x}"
        self.raylet = self._kernel.spawn_process(f"{self.name}/raylet", self)

    def processes(self) -> list[Process]:
        """Those that run on it."""
        return [p for p in list(self._kernel.processes.values()) if p.machine is self and p.alive]

    def kill_processes(self) -> None:
        """SIGKILL to everything on it."""
        self.up = False
        for process in self.processes():
            process.kill()

    def power_cut(self) -> None:
        """Everything ends, and what was not synced may be lost."""
        self.kill_processes()
        self.disk.crash(self._kernel.rng)
        self.clock_offset_s = self._kernel.rng.uniform(0, 1e5) - self._kernel.now_s

    def crash(self) -> None:
        """The machine starts again at once, without what was not synced; its Ray node is the same one."""
        for process in self.processes():
            process.kill()
        self.disk.crash(self._kernel.rng)
        self.clock_offset_s = self._kernel.rng.uniform(0, 1e5) - self._kernel.now_s
        self.raylet = self._kernel.spawn_process(f"{self.name}/raylet", self)

    def wipe(self) -> None:
        """Another disk is put in."""
        self.disk = SimulatedDisk(self._kernel)
        for file in (self.directory / "broker-0").glob("*"):
            file.unlink()


class Network:
    """Delays, losses and cuts between machines. A machine reaches itself always."""

    def __init__(self, kernel: Kernel) -> None:
        self._rng = kernel.rng
        self.loss = 0.0
        self.slow = 0.0
        self.repeats = 0.0
        self.cut: set[tuple[str, str]] = set()
        """Directed links that are down."""

    def reaches(self, source: Any, target: Any) -> bool:
        """Whether a message that is sent now can arrive."""
        return source is target or (_name(source), _name(target)) not in self.cut

    def lost(self, source: Any, target: Any) -> bool:
        """Whether this message will not arrive."""
        if source is target:
            return False
        return not self.reaches(source, target) or self._rng.random() < self.loss

    def delay_s(self, source: Any, target: Any) -> float:
        """How long this message takes."""
        if source is target:
            return self._rng.uniform(0.0002, 0.001)
        if self._rng.random() < self.slow:
            return self._rng.uniform(0.005, 0.6)
        return self._rng.uniform(0.0003, 0.003)

    def cut_off(self, one: str, other: str, *, both_ways: bool) -> None:
        """Takes a link down."""
        self.cut.add((one, other))
        if both_ways:
            self.cut.add((other, one))

    def heal(self) -> None:
        """All links are up again, and lose nothing."""
        self.cut.clear()
        self.loss = self.slow = self.repeats = 0.0


def _name(machine: Any) -> str:
    return DRIVER if machine is None else machine.name
