"""Keeps one coordinator actor beside a broker: started, found again after the broker's restart, replaced."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raystream.actors.coordinator import CoordinatorActor
from raystream.actors.handles import wait_for
from raystream.actors.launch import end_actor, find_actor, start_actor
from raystream.actors.processes import when_gone
from raystream.errors import RaystreamError

logger = logging.getLogger("raystream.broker")

START_TIMEOUT_MS: Final = 30_000.0
ADOPT_TIMEOUT_MS: Final = 3_000.0
STOP_TIMEOUT_MS: Final = 10_000.0


class CoordinatorKeeper:
    """`name` is the living coordinator's actor name, "" while there is none. `lost` runs on a watcher's thread."""

    def __init__(
        self, namespace: str, node_id: str, directory: Path, cluster: str, lost: Callable[[str], None]
    ) -> None:
        self._namespace = namespace
        self._node_id = node_id
        self._cluster = cluster
        self._file = directory / "coordinator.json"
        self._lost = lost
        self._handle: Any = None
        self.name = ""

    def start_or_adopt(self) -> None:
        """Takes in the coordinator that lives on from before the broker's restart, or starts one."""
        if self.name or self._adopt():
            return
        name = f"raystream-coordinator-{os.urandom(6).hex()}"
        handle = start_actor(
            CoordinatorActor, self._namespace, name=name, namespace=self._namespace, node_id=self._node_id
        )
        self._take(name, handle, START_TIMEOUT_MS)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"cluster": self._cluster, "node": self._node_id, "name": name}))
        temporary.replace(self._file)

    def _adopt(self) -> bool:
        try:
            remembered = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return False
        if (remembered.get("cluster"), remembered.get("node")) != (self._cluster, self._node_id):
            return False
        try:
            self._take(remembered["name"], find_actor(remembered["name"], self._namespace), ADOPT_TIMEOUT_MS)
        except RaystreamError as error:
            logger.info("the coordinator %s does not answer (%s): starting another", remembered["name"], error)
            with contextlib.suppress(Exception):
                end_actor(find_actor(remembered["name"], self._namespace))
            return False
        return True

    def _take(self, name: str, handle: Any, timeout_ms: float) -> None:
        pid = wait_for(handle.pid.remote(), timeout_ms)
        self.name, self._handle = name, handle
        when_gone(pid, lambda: self._lost(name))

    def lost(self, name: str) -> bool:
        """Whether the actor that died is this coordinator; if so there is none now."""
        if name != self.name:
            return False
        logger.warning("the coordinator %s is gone: starting its successor", name)
        self.name, self._handle = "", None
        self._file.unlink(missing_ok=True)
        return True

    def stop(self) -> None:
        """Ends the coordinator; what it answered is in the log."""
        if self._handle is not None:
            with contextlib.suppress(RaystreamError):
                wait_for(self._handle.stop.remote(), STOP_TIMEOUT_MS)
            end_actor(self._handle)
        self._file.unlink(missing_ok=True)
        self.name, self._handle = "", None
