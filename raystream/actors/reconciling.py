"""Keeps a broker's replicas as the metadata wants them: opens, reconfigures and closes them, and reports who serves.

What the controller says is compared with what is: on every change of the metadata, when an actor has died, and again
after a while where something did not work. News for replicas that are open never waits for others to be opened.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from raystream import messages as m
from raystream.actors.hosts import Hosts, Key
from raystream.actors.metadata import Metadata
from raystream.errors import RaystreamError
from raystream.storage.files import Files

logger = logging.getLogger("raystream.broker")

RETRY_S: Final = 0.5
OPEN_AGAIN_S: Final = 5.0
"""A replica that could not be opened is tried again after so long: the disk may have been full, or away."""
IDLE_S: Final = 5.0
QUARANTINE: Final = "quarantine"

Report = Callable[[tuple[m.ServedReplica, ...], tuple[Key, ...]], int]
"""Tells the controller of replicas that are served now, and of others whose actor has died. The version of the metadata
that knows it. Raises where it cannot."""


class Reconciler:
    """Two threads: one that compares and tells open replicas their news, one that opens and closes."""

    def __init__(
        self,
        metadata: Metadata,
        hosts: Hosts,
        broker_id: int,
        files: Files,
        slot: Path,
        lease_path: str,
        report: Report,
        begin_new_life: Callable[[], None],
        told: Callable[[int], None],
    ) -> None:
        self._metadata = metadata
        self._hosts = hosts
        self._broker_id = broker_id
        self._files = files
        self._slot = slot
        self._lease_path = lease_path
        self._report = report
        self._begin_new_life = begin_new_life
        self._told = told
        self._lock = threading.Lock()
        self._opened: dict[Key, m.ReplicaSpec] = {}
        self._served: dict[Key, m.ServedReplica] = {}
        self._refused: dict[Key, float] = {}
        """When replicas could not be opened."""
        self._opening: dict[Key, m.ReplicaSpec] = {}
        self._closing: set[Key] = set()
        self._silent: set[Key] = set()
        """Of those that are being closed: their actor serves them no more, and only their files are left."""
        self._lost: set[Key] = set()
        self._dead: list[str] = []
        self._anew: set[Key] = set()
        """Put aside, or gone, and nobody counts on it: to be opened although nothing of it is there."""
        self._not_before = 0
        """What died may be opened as the metadata of this version says, and no earlier one."""
        self._wake = threading.Event()
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._threads = [
            threading.Thread(target=self._compare, name="raystream-compare", daemon=True),
            threading.Thread(target=self._open_and_close, name="raystream-open", daemon=True),
        ]

    def start(self) -> None:
        """Takes in what lives on from before, counts the rest as lost, and begins."""
        adopted = {key: host.name for host in self._hosts.hosts() for key in host.keys}
        for key, name in adopted.items():
            self._served[key] = m.ServedReplica(*key, name)
        for key in self._metadata.replicas_on(self._broker_id):
            known = self._metadata.served_by(key, self._broker_id)
            if known is not None and known.actor and adopted.get(key) != known.actor:
                self._lost.add(key)
        self._put_strangers_aside()
        self._metadata.listen(self._wake.set)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._work.set()
        for thread in self._threads:
            thread.join(10)

    def actor_lost(self, name: str) -> None:
        """An actor's process is gone. On any thread."""
        self._dead.append(name)
        self._wake.set()

    def replica_failed(self, key: Key, error: str) -> None:
        """An open replica has found out that its log is not what it should be. On any thread."""
        with self._lock:
            if key in self._served and not self._served[key].error:
                self._served[key] = m.ServedReplica(*key, "", error)
        self._wake.set()

    def wait_until_settled(self, timeout_s: float) -> bool:
        """Whether everything that the metadata wants here is open, or has said why not."""
        return self._settled.wait(timeout_s)

    # Comparing ------------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            if self._stopping.is_set():
                return
            self._wake.clear()
            try:
                wait_s = IDLE_S if self._round() else RETRY_S
            except RaystreamError as error:
                logger.info("the replicas will be compared again: %s", error)
                wait_s = RETRY_S
            except Exception:
                logger.exception("the replicas could not be compared")
                wait_s = RETRY_S

    def _round(self) -> bool:
        """Whether nothing is left to do."""
        while self._dead:
            self._take_out(self._dead.pop(0))
        if self._lost and not self._tell((), tuple(sorted(self._lost))):
            return False
        self._lost.clear()
        if self._metadata.version < self._not_before:
            return False
        version = self._metadata.version
        wanted = {}
        for key in self._metadata.replicas_on(self._broker_id):
            spec = self._metadata.spec(key, self._broker_id, str(self._directory(key)), self._lease_path)
            if spec is not None:
                wanted[key] = spec
        with self._lock:
            self._forget_refusals()
            news = [spec for key, spec in wanted.items() if key in self._served and self._served[key].actor]
            news = [spec for spec in news if self._opened.get((spec.topic_id, spec.partition)) != spec]
            fresh = {key: spec for key, spec in wanted.items() if key not in self._served and key not in self._opening}
            gone = {key for key in self._served if key not in wanted} - self._closing
            outdated = bool((gone | self._closing) - self._silent) or any(
                wanted.get(key) != s for key, s in self._opening.items()
            )
            self._opening.update(fresh)
            self._closing |= gone
        if fresh or gone:
            self._work.set()
        done = self._update(news)
        if done and not outdated:
            self._told(version)
        self._begin_corrupt_anew()
        changed = tuple(
            served
            for key, served in list(self._served.items())
            if key in wanted and self._metadata.served_by(key, self._broker_id) != served
        )
        done = (not changed or self._tell(changed, ())) and done
        with self._lock:
            settled = done and not self._opening and not self._closing
        if settled and all(key in self._served for key in wanted):
            self._settled.set()
        return settled

    def _forget_refusals(self) -> None:
        """*lock held* What could not be opened a while ago is opened again, unless its log is corrupt. One
        that is gone may have been put back."""
        for key, when in list(self._refused.items()):
            served = self._served.get(key)
            corrupt = served is not None and served.error.startswith(m.CORRUPT_LOG)
            if served is None or served.actor or (corrupt and not served.error.startswith(m.LOST_LOG)):
                del self._refused[key]
            elif time.monotonic() - when >= OPEN_AGAIN_S:
                del self._refused[key], self._served[key]
                self._opened.pop(key, None)

    def _begin_corrupt_anew(self) -> None:
        """Replicas whose log is corrupt, and which nobody counts on any more, are put aside and filled from the others;
        or begin empty, where the only one was let go of.

        Their leaders must not believe what they held before: that ends with this life of the broker.
        """
        with self._lock:
            corrupt = [key for key, served in self._served.items() if served.error.startswith(m.CORRUPT_LOG)]
        anew = [key for key in corrupt if self._is_let_go(key)]
        for key in anew:
            logger.warning("%s is put into %s and begun anew", self._directory(key), QUARANTINE)
            self._hosts.close((key,))
            self._put_aside(self._directory(key))
        if anew:
            self._begin_new_life()
            with self._lock:
                self._anew.update(anew)
                for key in anew:
                    self._served.pop(key, None)
                    self._opened.pop(key, None)
            self._wake.set()

    def _is_let_go(self, key: Key) -> bool:
        known = self._metadata.served_by(key, self._broker_id)
        asked = known is not None and known.error.startswith(m.LET_GO)
        return asked or self._metadata.is_superfluous(key, self._broker_id)

    def _take_out(self, name: str) -> None:
        host = self._hosts.drop(name)
        if host is None:
            return
        logger.warning("partition actor %s (pid %d) is gone: starting its successor", name, host.pid)
        with self._lock:
            for key in host.keys:
                self._opened.pop(key, None)
                if self._served.pop(key, None) is not None:
                    self._lost.add(key)

    def _tell(self, served: tuple[m.ServedReplica, ...], lost: tuple[Key, ...]) -> bool:
        try:
            version = self._report(served, lost)
        except RaystreamError as error:
            logger.info("the controller does not know yet who serves here: %s", error)
            return False
        if lost:
            self._not_before = max(self._not_before, version)
        return True

    def _update(self, specs: list[m.ReplicaSpec]) -> bool:
        """Tells open replicas their news."""
        if not specs:
            return True
        answers = self._hosts.update(specs)
        with self._lock:
            for spec in specs:
                key = (spec.topic_id, spec.partition)
                if key in answers and key in self._served:
                    self._opened[key] = spec
        return len(answers) == len(specs)

    # Opening and closing --------------------------------------------------------------------------------------------

    def _open_and_close(self) -> None:
        while not self._stopping.is_set():
            self._work.wait(IDLE_S)
            self._work.clear()
            if self._stopping.is_set():
                return
            try:
                self._open_what_is_wanted()
                self._close_what_is_gone()
                self._hosts.keep_spare()
            except RaystreamError as error:
                logger.warning("will try again: %s", error)
                self._stopping.wait(RETRY_S)
                self._work.set()
            except Exception:
                logger.exception("replicas could not be opened or closed")
                self._stopping.wait(RETRY_S)
                self._work.set()

    def _open_what_is_wanted(self) -> None:
        for internal in (True, False):
            with self._lock:
                opening = dict(self._opening)
            specs = [spec for key, spec in opening.items() if self._metadata.is_internal(key) == internal]
            if not specs:
                continue
            try:
                served = self._hosts.open([self._stated(spec) for spec in specs], internal=internal)
            except RaystreamError:
                with self._lock:
                    for spec in specs:
                        self._opening.pop((spec.topic_id, spec.partition), None)
                raise
            with self._lock:
                living = {host.name for host in self._hosts.hosts()}  # one may have died since it answered
                for spec in specs:
                    key = (spec.topic_id, spec.partition)
                    self._opening.pop(key, None)
                    actor, error = served.get(key, ("", ""))
                    if error or actor in living:
                        if actor:
                            self._anew.discard(key)
                        self._served[key] = m.ServedReplica(*key, actor, error)
                        self._opened[key] = spec
                        if error:
                            self._refused[key] = time.monotonic()
            self._wake.set()
        with self._lock:
            stale = [key for key in self._opening if self._metadata.spec(key, self._broker_id, "", "") is None]
            for key in stale:
                del self._opening[key]

    def _stated(self, spec: m.ReplicaSpec) -> m.ReplicaSpec:
        """With what the disk must have, for the opening alone: while a replica is open it is no news."""
        key = (spec.topic_id, spec.partition)
        opened = key not in self._anew and self._metadata.was_opened(key, self._broker_id)
        return replace(spec, opened=opened)

    def _close_what_is_gone(self) -> None:
        with self._lock:
            closing = sorted(self._closing)
        if not closing:
            return
        self._hosts.close(closing)
        with self._lock:
            self._silent.update(closing)
        self._wake.set()
        for key in closing:
            self._files.remove_directory(str(self._directory(key)))
            with self._lock:
                self._closing.discard(key)
                self._silent.discard(key)
                self._served.pop(key, None)
                self._opened.pop(key, None)
        self._wake.set()

    def _directory(self, key: Key) -> Path:
        return self._slot / f"{key[0]}-{key[1]}"

    def _put_strangers_aside(self) -> None:
        """Directories of partitions that the metadata does not know are kept, out of the way: the metadata may be what
        is missing."""
        known = {self._directory(key).name for key in self._metadata.replicas_on(self._broker_id)}
        for name in self._files.directories(str(self._slot)):
            topic_id, dash, number = name.rpartition("-")
            if dash and number.isdigit() and len(topic_id) == 32 and name not in known:
                logger.warning(
                    "%s/%s belongs to no partition that the metadata knows: it is put aside", self._slot, name
                )
                self._put_aside(self._slot / name)

    def _put_aside(self, directory: Path) -> None:
        aside = self._slot / QUARANTINE
        self._files.makedirs(str(aside))
        self._files.move_directory(str(directory), str(aside / f"{directory.name}.{os.urandom(4).hex()}"))
