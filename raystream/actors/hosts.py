"""The partition actors of one broker: started, found again after the broker's restart, watched, replaced.

A replica gets an actor of its own up to MAX_HOSTS; beyond that, replicas share them, since an idle Python actor costs
60 MB. Internal topics share one. One started actor is kept in reserve, so that a new topic, or the successor of a
killed actor, does not wait for a process to start. Actors are started and ended on one
thread; `update`, `drop` and `hosts` may be called on another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from raystream import messages as m
from raystream.actors.handles import translated, wait_for
from raystream.actors.launch import end_actor, find_actor, start_actor
from raystream.actors.partition import PartitionActor
from raystream.actors.processes import is_alive, when_gone
from raystream.errors import RaystreamError

logger = logging.getLogger("raystream.broker")

MAX_HOSTS: Final = 8
START_TIMEOUT_MS: Final = 30_000.0
OPEN_TIMEOUT_MS: Final = 60_000.0
UPDATE_TIMEOUT_MS: Final = 5_000.0
ADOPT_TIMEOUT_MS: Final = 3_000.0
STOP_TIMEOUT_MS: Final = 15_000.0

Key = tuple[str, int]


@dataclass
class Host:
    """One partition actor's process and the replicas it holds."""

    name: str
    handle: Any
    pid: int
    internal: bool = False
    keys: set[Key] = field(default_factory=set)


class Hosts:
    """Keeps every replica in a living actor. `lost(keys)` is called on a watcher's thread when an actor dies."""

    def __init__(
        self, *, namespace: str, node_id: str, directory: Path, cluster: str, lost: Callable[[str], None]
    ) -> None:
        self._namespace = namespace
        self._node_id = node_id
        self._cluster = cluster
        self._file = directory / "hosts.json"
        self._lost = lost
        self._hosts: dict[str, Host] = {}
        self._spare: tuple[str, Any] | None = None

    # Placing --------------------------------------------------------------------------------------------------------

    def open(self, specs: Sequence[m.ReplicaSpec], *, internal: bool) -> dict[Key, tuple[str, str]]:
        """Puts replicas into actors and opens them. Answers per replica the actor's name; or "" and why not, where
        trying again would not help; or "" twice."""
        chosen = self._choose(specs, internal)
        self._remember()
        answers = []
        for host, own in chosen:
            host.keys.update((spec.topic_id, spec.partition) for spec in own)
            answers.append((host, own, host.handle.open.remote(tuple(own))))
        served: dict[Key, tuple[str, str]] = {}
        for host, own, answer in answers:
            try:
                statuses = wait_for(answer, OPEN_TIMEOUT_MS)
            except RaystreamError as error:
                # an actor that died or is slow is no reason to call a partition broken: it is opened again
                reason = "" if error.retriable else str(error)
                served.update({(s.topic_id, s.partition): ("", reason) for s in own})
                continue
            for status in statuses:
                served[status.topic_id, status.partition] = ("", status.error) if status.error else (host.name, "")
        return served

    def update(self, specs: Sequence[m.ReplicaSpec]) -> set[Key]:
        """Tells open replicas their news. Answers which have taken it over. On any thread."""
        told: list[tuple[Any, list[m.ReplicaSpec]]] = []
        for host in self.hosts():
            own = [spec for spec in specs if (spec.topic_id, spec.partition) in host.keys]
            if own:
                told.append((host.handle.open.remote(tuple(own)), own))
        taken: set[Key] = set()
        for answer, own in told:
            try:
                statuses = wait_for(answer, UPDATE_TIMEOUT_MS)
            except RaystreamError as error:
                logger.info("an actor does not take news: %s", error)
                continue
            taken |= {(s.topic_id, s.partition) for s, status in zip(own, statuses, strict=True) if not status.error}
        return taken

    def _choose(self, specs: Sequence[m.ReplicaSpec], internal: bool) -> list[tuple[Host, list[m.ReplicaSpec]]]:
        placed: dict[str, list[m.ReplicaSpec]] = {}
        homeless = []
        for spec in specs:
            home = self.home((spec.topic_id, spec.partition))
            if home is not None:
                placed.setdefault(home.name, []).append(spec)
            else:
                homeless.append(spec)
        peers = [host for host in self.hosts() if host.internal == internal]
        empty = sum(not host.keys for host in peers)
        wanted = max(0, min(len(homeless) - empty, (1 if internal else MAX_HOSTS) - len(peers)))
        peers += self._start(wanted, internal)
        load = {host.name: len(host.keys) for host in peers}
        for spec in homeless:
            least = min(load, key=lambda name: load[name])
            load[least] += 1
            placed.setdefault(least, []).append(spec)
        living = {host.name: host for host in self.hosts()}  # one that has died meanwhile is chosen no more
        return [(living[name], own) for name, own in placed.items() if name in living]

    def home(self, key: Key) -> Host | None:
        """The host that holds the replica."""
        return next((host for host in self.hosts() if key in host.keys), None)

    def hosts(self) -> list[Host]:
        return list(self._hosts.values())

    def close(self, keys: Iterable[Key]) -> None:
        """Closes replicas for good (their topic is deleted) and ends actors that are left without any."""
        for key in keys:
            host = self.home(key)
            if host is None:
                continue
            with contextlib.suppress(RaystreamError):
                wait_for(host.handle.close.remote((key,)), OPEN_TIMEOUT_MS)
            host.keys.discard(key)
            if not host.keys:
                self._hosts.pop(host.name, None)  # one that has died was dropped meanwhile
                end_actor(host.handle)
        self._remember()

    # Starting, adopting, stopping -----------------------------------------------------------------------------------

    def keep_spare(self) -> None:
        """Starts the actor kept in reserve, without waiting for it."""
        if self._spare is None:
            self._spare = self._launch()
            self._remember()

    def _launch(self) -> tuple[str, Any]:
        name = f"raystream-partitions-{os.urandom(6).hex()}"
        return name, start_actor(
            PartitionActor, name, self._namespace, name=name, namespace=self._namespace, node_id=self._node_id
        )

    def _start(self, count: int, internal: bool) -> list[Host]:
        launched = [self._launch() for _ in range(count - 1 if self._spare and count else count)]
        if count and self._spare:
            launched.append(self._spare)
            self._spare = None
        started: list[Host] = []
        try:
            for name, handle in launched:
                pid = wait_for(handle.pid.remote(), START_TIMEOUT_MS)
                started.append(self._take_in(Host(name, handle, pid, internal)))
        except BaseException:
            for _, handle in launched[len(started) :]:
                end_actor(handle)  # the next attempt starts others, and these would slow it down
            raise
        return started

    def _take_in(self, host: Host) -> Host:
        self._hosts[host.name] = host
        when_gone(host.pid, lambda: self._lost(host.name))
        return host

    def drop(self, name: str) -> Host | None:
        """Takes a dead actor out; answers what it held."""
        host = self._hosts.pop(name, None)
        if host is not None:
            self._remember()
        return host

    def adopt(self) -> None:
        """After a restart of the broker: takes in the actors that live on, ends those that do not answer."""
        try:
            remembered = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return
        if (remembered.get("cluster"), remembered.get("node")) != (self._cluster, self._node_id):
            return  # they ended with their Ray node
        for name, (pid, internal) in remembered["hosts"].items():
            if not is_alive(pid):
                continue
            try:
                handle = find_actor(name, self._namespace)
                statuses = wait_for(handle.status.remote(), ADOPT_TIMEOUT_MS)
            except RaystreamError as error:
                logger.info("partition actor %s does not answer (%s): ending it", name, error)
                _end_process(pid)
                continue
            host = self._take_in(Host(name, handle, pid, internal))
            host.keys.update((status.topic_id, status.partition) for status in statuses)
        if remembered["spare"]:
            with contextlib.suppress(RaystreamError):
                handle = find_actor(remembered["spare"], self._namespace)
                wait_for(handle.pid.remote(), ADOPT_TIMEOUT_MS)
                self._spare = (remembered["spare"], handle)

    def stop(self) -> None:
        """Closes every log cleanly and ends the actors."""
        stopping = [(host, host.handle.stop.remote()) for host in self._hosts.values()]
        for host, stopped in stopping:
            with contextlib.suppress(RaystreamError):
                wait_for(stopped, STOP_TIMEOUT_MS)
            end_actor(host.handle)
        if self._spare is not None:
            end_actor(self._spare[1])
        self._hosts.clear()
        self._file.unlink(missing_ok=True)

    def _remember(self) -> None:
        state = {
            "cluster": self._cluster,
            "node": self._node_id,
            "hosts": {host.name: [host.pid, host.internal] for host in self._hosts.values()},
            "spare": self._spare[0] if self._spare else "",
        }
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._file)


def _end_process(pid: int) -> None:
    """SIGKILL, if that process id is still one of Ray's workers."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        if is_alive(pid) and b"ray::" in cmdline.read():
            os.kill(pid, signal.SIGKILL)


def ask_all(hosts: Iterable[Host], method: str, timeout_ms: float) -> list[Any]:
    """One method of several hosts at once; None for those that do not answer."""
    asked = [getattr(host.handle, method).remote() for host in hosts]
    answers = []
    for reference in asked:
        try:
            answers.append(wait_for(reference, timeout_ms))
        except Exception as error:
            logger.debug("no answer to %s: %s", method, translated(error, timeout_ms))
            answers.append(None)
    return answers
