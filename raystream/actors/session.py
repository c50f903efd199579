"""Finds the Ray to use, or starts one, brings raystream up on it, and notices when it goes.

In this order: the Ray that this process is in; `$RAY_ADDRESS`; the live cluster that owns the data root; a new local
Ray, whose data root this process then owns. One process has one session, however often it connects.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from raystream import messages as m
from raystream.actors.broker import BrokerActor
from raystream.actors.finding import broker_name, find_broker, find_brokers
from raystream.actors.handles import RayDirectory, translated, wait_for
from raystream.actors.launch import end_actor, start_actor
from raystream.actors.processes import answers, is_alive, same_host, when_gone
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import Routing
from raystream.clock import SystemClock
from raystream.errors import ClusterGone, ClusterNotFound, InvalidArgument, RaystreamError, RequestTimeout, Unavailable
from raystream.storage import root as data_roots

logger = logging.getLogger("raystream")

START_TIMEOUT_MS: Final = 60_000.0
STOP_TIMEOUT_MS: Final = 20_000.0
DYING_OWNER_WAIT_S: Final = 20.0
EMBEDDED_INLINE_BYTES: Final = 2_000_000
"""On a Ray of our own, arguments up to this size travel inside the call."""


@dataclass
class Session:
    """This process's tie to one cluster: where it is, and the loop and the routing that all its clients share."""

    namespace: str
    address: str
    data_dir: str
    cluster_id: str
    directory: RayDirectory
    owns_ray: bool
    joined_ray: bool
    loop: BackgroundLoop
    routing: Routing
    claim: data_roots.RootClaim | None = None
    problems: tuple[str, ...] = ()
    """Why nodes of the Ray cluster have no broker, as it was when this process connected."""
    users: int = 1
    stopped: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """One user less; the last one stops what this process started. The data stays."""
        global _session
        with _lock:
            self.users -= 1
            if self.users > 0 or self.stopped.is_set():
                return
            _session = None
        self.stop()

    def stop(self) -> None:
        """Stops raystream and Ray if this process started them; otherwise only disconnects."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        if self.owns_ray:
            with contextlib.suppress(RaystreamError, ValueError):
                stop_raystream(self.namespace)
        self.directory.gone = ClusterGone("this connection to the cluster was closed")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.asyncio_loop.call_soon_threadsafe(self.directory.close)
        self.loop.stop()
        if self.owns_ray or self.joined_ray:
            ray.shutdown()
        if self.claim is not None:
            self.claim.release()

    def owner_exited(self, pid: int) -> None:
        """The process that owned the embedded cluster is gone: say so in every call, and let go of its Ray."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self.directory.gone = ClusterGone(
            f"the process that owned this cluster (pid {pid}) has exited; its data stays in {self.data_dir}: "
            "connect again to open it"
        )
        self.loop.abort(self.directory.gone)
        logger.warning("%s", self.directory.gone)
        threading.Thread(target=ray.shutdown, name="raystream-disconnect", daemon=True).start()


_session: Session | None = None
_lock = threading.RLock()


def open_session(address: str | None, data_dir: str | os.PathLike[str] | None, namespace: str) -> Session:
    """This process's session, or a new one. Raises ClusterNotFound, DataDirectoryInUse, DataDirectoryUnusable."""
    global _session
    if sys.platform == "win32":
        raise ClusterNotFound("raystream runs on Linux and macOS; on Windows use WSL")
    with _lock:
        if _session is not None and not _session.stopped.is_set() and ray.is_initialized():
            _check_same(_session, address, data_dir, namespace)
            _session.users += 1
            return _session
        _session = _open(address, data_dir, namespace)
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)
        return _session


def nodes_without_broker() -> tuple[str, ...]:
    """Why nodes of this process's Ray cluster have no broker, a sentence for each, as it was when it connected."""
    return () if _session is None else _session.problems


def _at_exit() -> None:
    session = _session
    if session is not None:
        session.stop()


def _check_same(session: Session, address: str | None, data_dir: str | os.PathLike[str] | None, namespace: str) -> None:
    _check_address(address, session.address)
    if data_dir is not None and Path(data_dir).resolve() != Path(session.data_dir).resolve():
        raise InvalidArgument(
            f"this process is connected to the cluster whose data lies in {session.data_dir}: close() that first"
        )
    if namespace != session.namespace:
        raise InvalidArgument(f"this process is connected in namespace {session.namespace!r}: close() that first")


def _check_address(wanted: str | None, connected: str) -> None:
    """Raises InvalidArgument where this process is on another Ray cluster than the one that is asked for."""
    if wanted is None or ":" not in wanted:
        return
    host, _, port = wanted.rpartition(":")
    here, _, our_port = connected.rpartition(":")
    if port != our_port or not same_host(host, here):
        raise InvalidArgument(f"this process is connected to the Ray cluster at {connected}: leave that first")


def _open(address: str | None, data_dir: str | os.PathLike[str] | None, namespace: str) -> Session:
    if address is not None and address.startswith("ray://"):
        raise ClusterNotFound(
            "ray:// clients cannot map the log and move data slowly: run the loop in a Ray task or job on the cluster"
        )
    if ray.is_initialized():
        _check_address(address, str(ray.get_runtime_context().gcs_address))
        return _bring_up(namespace, data_dir, joined_ray=False)
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        join_ray(address)
        return _bring_up(namespace, data_dir, joined_ray=True)
    return _embedded(embedded_root(data_dir), namespace)


def embedded_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Where an embedded cluster keeps its data: `data_dir`, else $RAYSTREAM_DATA, else ./.raystream."""
    return Path(data_dir or os.environ.get("RAYSTREAM_DATA") or ".raystream").absolute()


def _embedded(root: Path, namespace: str) -> Session:
    """Owns the root and starts a local Ray, or joins whoever owns it; waits for a dying owner to be gone."""
    data_roots.prepare(root, hide_from_git=True)
    deadline = time.monotonic() + DYING_OWNER_WAIT_S
    while True:
        claim = data_roots.claim(root)
        if claim is not None:
            return _start_embedded(root, claim, namespace)
        owner = data_roots.read_owner(root)
        if owner is not None and is_alive(owner.pid):
            with contextlib.suppress(ClusterNotFound):
                show_token()
                join_ray(owner.address)
                session = _bring_up(namespace, root, joined_ray=True)
                if owner.embedded:  # a Ray cluster outlives the process that brought raystream up on it
                    when_gone(owner.pid, partial(session.owner_exited, owner.pid))
                return session
        if time.monotonic() > deadline:
            raise data_roots.in_use(root, owner)
        time.sleep(0.05)


def _start_embedded(root: Path, claim: data_roots.RootClaim, namespace: str) -> Session:
    niceness = os.environ.get("RAY_worker_niceness")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        context = ray.init(
            address="local",
            namespace=namespace,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"max_direct_call_object_size": EMBEDDED_INLINE_BYTES},
        )
        address = context.address_info["gcs_address"]
        claim.publish(cluster=_ray_life(), address=address, embedded=True)
        session = _bring_up(namespace, root, joined_ray=False, owns_ray=True)
    except BaseException:
        if ray.is_initialized():
            ray.shutdown()
        claim.release()
        raise
    finally:
        if niceness is None:
            os.environ.pop("RAY_worker_niceness", None)
    session.claim = claim
    return session


def show_token() -> None:
    """Lets this process show the token of the user's home directory, as the owner's Ray may ask for it.

    Ray does so by itself only for clusters that it starts or finds without an address.
    """
    try:
        from ray._private.authentication import authentication_token_setup as tokens
    except ImportError:
        return  # an older Ray, without tokens
    tokens.logger.setLevel(logging.ERROR)  # it would warn of what the owner chose
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def join_ray(address: str) -> None:
    """Connects this process to a Ray cluster. Raises ClusterNotFound, at once where nobody is there."""
    if ":" in address and not answers(address):  # Ray itself would try for minutes
        raise ClusterNotFound(f"nobody answers at {address}: there is no Ray cluster")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ClusterNotFound(f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error


def _head_node_id() -> str:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = [node for node in nodes if "node:__internal_head__" in node["Resources"]]
    return str((heads or nodes)[0]["NodeID"])


def _ray_life() -> str:
    return _head_node_id()  # drawn anew whenever a Ray cluster starts


def _bring_up(
    namespace: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    joined_ray: bool,
    owns_ray: bool = False,
) -> Session:
    address = str(ray.get_runtime_context().gcs_address)
    spec = m.BrokerSpec(
        namespace=namespace,
        root=None if data_dir is None else str(Path(data_dir).absolute()),
        cluster=_ray_life(),
        address=address,
        embedded=owns_ray,
    )
    ready = _ready(namespace, spec)
    for problem in ready.problems:
        logger.warning("a node has no broker: %s", problem)
    if data_dir is not None and Path(data_dir).resolve() != Path(ready.root).resolve():
        raise InvalidArgument(f"raystream is up on this Ray cluster with its data in {ready.root}, not in {data_dir}")
    directory = RayDirectory(namespace)
    return Session(
        namespace=namespace,
        address=address,
        data_dir=ready.root,
        cluster_id=ready.cluster_id,
        directory=directory,
        loop=BackgroundLoop(),
        routing=Routing(directory, SystemClock()),
        owns_ray=owns_ray,
        joined_ray=joined_ray,
        problems=ready.problems,
    )


def _ready(namespace: str, spec: m.BrokerSpec) -> m.BrokerReady:
    """Waits until a broker is up, this node's where it has one; starts the head's where there is none at all, which
    brings up the others. Raises why it cannot start."""
    near = ray.get_runtime_context().get_node_id()
    deadline = time.monotonic() + START_TIMEOUT_MS / 1000
    while True:
        try:
            handle: Any = find_broker(namespace, near)
        except Unavailable:
            handle = start_actor(
                BrokerActor,
                spec,
                name=broker_name(spec.cluster),
                namespace=namespace,
                node_id=spec.cluster,
                max_restarts=-1,
            )
        try:
            ready: m.BrokerReady = wait_for(handle.ready.remote(), START_TIMEOUT_MS)
            return ready
        except RequestTimeout:
            raise
        except RaystreamError as error:
            if not error.retriable:
                with contextlib.suppress(Exception):
                    end_actor(handle)  # so that the next connect() starts afresh
                raise
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def stop_raystream(namespace: str) -> None:
    """Stops every raystream actor of the namespace cleanly; Ray goes on."""
    try:
        handles = list(find_brokers(namespace, ray.get_runtime_context().get_node_id()))
        stopping = [(handle, handle.stop.remote()) for handle in handles]
        for handle, stopped in stopping:
            with contextlib.suppress(RaystreamError):
                wait_for(stopped, STOP_TIMEOUT_MS)
            end_actor(handle)
    except RaystreamError:
        pass
    except Exception as error:
        raise translated(error, STOP_TIMEOUT_MS) from error


def show_notices() -> None:
    """One line at a time on stderr for what a user should know, unless the program set logging up itself."""
    if not logger.handlers and not logging.getLogger().handlers and logger.level == logging.NOTSET:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("raystream: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
