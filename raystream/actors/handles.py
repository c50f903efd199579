"""Turns Ray handles into ports: awaits with a deadline, and turns Ray's errors into raystream's.

Nobody outside `actors/` holds a Ray handle.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import ray
from ray import exceptions as ray_errors

from raystream import messages as m
from raystream.actors.connections import Shortcut
from raystream.actors.finding import find_brokers
from raystream.actors.launch import APPEND, CONTROL, FETCH, find_actor
from raystream.batch import Bytes
from raystream.config import INLINE_LIMIT_BYTES
from raystream.errors import ActorLost, ClusterGone, RaystreamError, RequestTimeout, Unavailable

CONTROLLER_AGE_S: Final = 5.0
FIND_TIMEOUT_S: Final = 5.0
ASK_TIMEOUT_MS: Final = 5_000.0


async def call(method: Any, *args: Any, timeout_ms: float) -> Any:
    """One call across an actor border. Raises the other side's error, RequestTimeout or ActorLost."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):  # no task of its own, as asyncio.wait_for makes one
            return await method.remote(*args)
    except Exception as error:
        raise translated(error, timeout_ms) from None


def wait_for(reference: Any, timeout_ms: float) -> Any:
    """The value of a reference, for actors that wait on one of their own threads. Raises as `call` does."""
    try:
        return ray.get(reference, timeout=timeout_ms / 1000)
    except Exception as error:
        raise translated(error, timeout_ms) from None


def translated(error: Exception, timeout_ms: float) -> Exception:
    """Ray's error as one of raystream's tree; a fault of the program itself stays what it is.

    An error of the other side arrives as one that is both Ray's and ours, with a remote traceback for a text: what is
    handed on is the error itself.
    """
    if isinstance(error, ray_errors.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, Exception) else error
    if isinstance(error, RaystreamError):
        return error
    if isinstance(error, (asyncio.TimeoutError, ray_errors.GetTimeoutError, TimeoutError)):
        return RequestTimeout(f"no answer within {timeout_ms:.0f} ms")
    if isinstance(error, (ray_errors.RayActorError, ray_errors.ActorUnavailableError, ray_errors.ObjectLostError)):
        return ActorLost(f"the actor died or cannot be reached ({type(error).__name__})")
    if not ray.is_initialized():
        return ClusterGone("Ray has shut down in this process: connect again")
    if isinstance(error, ray_errors.RayError):
        return ActorLost(f"Ray could not complete the call ({type(error).__name__}: {error})")
    return error


def shortcut_to(handle: Any) -> Shortcut:
    """The way to an actor's endpoint."""

    async def ask() -> m.EndpointReply:
        endpoint = getattr(handle, "endpoint", None)  # an actor of an earlier release has none
        if endpoint is None:
            return m.EndpointReply(node_id="", address=None)
        reply: m.EndpointReply = await call(endpoint.options(concurrency_group=CONTROL), timeout_ms=ASK_TIMEOUT_MS)
        return reply

    return Shortcut(ask)


class RayPartition:
    """PartitionPort over a partition actor: appends and fetches through its endpoint where that is on this machine."""

    def __init__(self, handle: Any) -> None:
        self._append = handle.append.options(concurrency_group=APPEND)
        self._fetch = handle.fetch.options(concurrency_group=FETCH)
        self._handle = handle
        self._list_offsets = handle.list_offsets.options(concurrency_group=CONTROL)
        self._delete_records = handle.delete_records.options(concurrency_group=CONTROL)
        self._status = handle.status.options(concurrency_group=CONTROL)
        self.shortcut = shortcut_to(handle)

    async def append(self, request: m.AppendRequest, batch: Bytes, *, timeout_ms: float) -> m.AppendReply:
        reply: m.AppendReply
        if (direct := await self.shortcut.found()) is not None:
            reply = await direct.call("append", request, batch, timeout_ms=timeout_ms)
            return reply
        # bytes travel cheapest inside the call, an Arrow buffer goes through shared memory without a copy
        payload = bytes(batch) if len(batch) <= INLINE_LIMIT_BYTES else pa.py_buffer(batch)
        reply = await call(self._append, request, payload, timeout_ms=timeout_ms)
        return reply

    async def fetch(self, request: m.FetchRequest, *, timeout_ms: float) -> m.FetchReply:
        reply: m.FetchReply
        if (direct := await self.shortcut.found()) is not None:
            reply = await direct.call("fetch", request, timeout_ms=timeout_ms)
        else:
            reply = await call(self._fetch, request, timeout_ms=timeout_ms)
        return reply

    async def write_marker(self, request: m.WriteMarkerRequest, *, timeout_ms: float) -> m.AppendReply:
        reply: m.AppendReply
        if (direct := await self.shortcut.found()) is not None:
            reply = await direct.call("write_marker", request, timeout_ms=timeout_ms)
        else:
            method = self._handle.write_marker.options(concurrency_group=APPEND)
            reply = await call(method, request, timeout_ms=timeout_ms)
        return reply

    async def list_offsets(self, request: m.ListOffsetsRequest, *, timeout_ms: float) -> m.OffsetReply:
        reply: m.OffsetReply
        direct = await self.shortcut.found()
        if direct is not None and direct.serves("list_offsets"):
            reply = await direct.call("list_offsets", request, timeout_ms=timeout_ms)
        else:
            reply = await call(self._list_offsets, request, timeout_ms=timeout_ms)
        return reply

    async def delete_records(self, request: m.DeleteRecordsRequest, *, timeout_ms: float) -> m.OffsetReply:
        reply: m.OffsetReply = await call(self._delete_records, request, timeout_ms=timeout_ms)
        return reply

    async def status(self, *, timeout_ms: float) -> tuple[m.ReplicaStatus, ...]:
        reply: tuple[m.ReplicaStatus, ...]
        direct = await self.shortcut.found()
        if direct is not None and direct.serves("status"):
            reply = await direct.call("status", None, timeout_ms=timeout_ms)
        else:
            reply = await call(self._status, timeout_ms=timeout_ms)
        return reply


class RayController:
    """ControllerPort over a broker actor: any broker hands changes on to the controller. `lost`: it does not answer."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.lost = False
        self._metadata = handle.metadata.options(concurrency_group=FETCH)

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
        reply: m.MetadataReply = await self._call(self._metadata, request, timeout_ms=timeout_ms)
        return reply

    async def create_topic(self, request: m.CreateTopicRequest, *, timeout_ms: float) -> m.TopicMetadata:
        return await self._change("create_topic", request, timeout_ms)

    async def alter_topic(self, request: m.AlterTopicRequest, *, timeout_ms: float) -> m.TopicMetadata:
        return await self._change("alter_topic", request, timeout_ms)

    async def delete_topic(self, request: m.DeleteTopicRequest, *, timeout_ms: float) -> m.Done:
        return await self._do("delete_topic", request, timeout_ms)

    async def reassign(self, request: m.ReassignRequest, *, timeout_ms: float) -> m.TopicMetadata:
        reply: m.TopicMetadata = await self._change("reassign", request, timeout_ms)
        return reply

    async def elect_leaders(self, request: m.ElectLeadersRequest, *, timeout_ms: float) -> m.Done:
        return await self._do("elect_leaders", request, timeout_ms)

    async def drain_broker(self, request: m.DrainBrokerRequest, *, timeout_ms: float) -> m.Done:
        return await self._do("drain_broker", request, timeout_ms)

    async def set_quota(self, request: m.ClientQuota, *, timeout_ms: float) -> m.Done:
        return await self._do("set_quota", request, timeout_ms)

    async def _do(self, name: str, request: Any, timeout_ms: float) -> m.Done:
        method = self._handle.change.options(concurrency_group=APPEND)
        reply: m.Done = await self._call(method, name, request, timeout_ms=timeout_ms)
        return reply

    async def _change(self, name: str, request: Any, timeout_ms: float) -> Any:
        method = getattr(self._handle, name).options(concurrency_group=APPEND)
        return await self._call(method, request, timeout_ms=timeout_ms)

    async def _call(self, method: Any, *arguments: Any, timeout_ms: float) -> Any:
        try:
            return await call(method, *arguments, timeout_ms=timeout_ms)
        except (ActorLost, RequestTimeout):
            self.lost = True
            raise


class RayCoordinator:
    """CoordinatorPort over a coordinator actor: frequent calls through its endpoint where that is on this machine."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.shortcut = shortcut_to(handle)

    async def heartbeat(self, request: m.HeartbeatRequest, *, timeout_ms: float) -> m.HeartbeatReply:
        reply: m.HeartbeatReply = await self._call("heartbeat", FETCH, request, timeout_ms)
        return reply

    async def commit(self, request: m.CommitRequest, *, timeout_ms: float) -> m.Done:
        reply: m.Done = await self._call("commit", APPEND, request, timeout_ms)
        return reply

    async def add_partitions(self, request: m.AddPartitionsRequest, *, timeout_ms: float) -> m.Done:
        reply: m.Done = await self._call("add_partitions", APPEND, request, timeout_ms)
        return reply

    async def end_transaction(self, request: m.EndTransactionRequest, *, timeout_ms: float) -> m.EndTransactionReply:
        reply: m.EndTransactionReply = await self._call("end_transaction", APPEND, request, timeout_ms)
        return reply

    async def share_heartbeat(self, request: m.ShareHeartbeatRequest, *, timeout_ms: float) -> m.ShareHeartbeatReply:
        reply: m.ShareHeartbeatReply = await self._call("share_heartbeat", FETCH, request, timeout_ms)
        return reply

    async def share_acquire(self, request: m.ShareAcquireRequest, *, timeout_ms: float) -> m.ShareAcquireReply:
        reply: m.ShareAcquireReply = await self._call("share_acquire", FETCH, request, timeout_ms)
        return reply

    async def share_acknowledge(
        self, request: m.ShareAcknowledgeRequest, *, timeout_ms: float
    ) -> m.ShareAcknowledgeReply:
        reply: m.ShareAcknowledgeReply = await self._call("share_acknowledge", APPEND, request, timeout_ms)
        return reply

    async def _call(self, name: str, group: str, request: Any, timeout_ms: float) -> Any:
        if (direct := await self.shortcut.found()) is not None:
            return await direct.call(name, request, timeout_ms=timeout_ms)
        method = getattr(self._handle, name).options(concurrency_group=group)
        return await call(method, request, timeout_ms=timeout_ms)

    async def init_producer(self, request: m.InitProducerRequest, *, timeout_ms: float) -> m.InitProducerReply:
        reply: m.InitProducerReply = await self._ask("init_producer", request, timeout_ms)
        return reply

    async def fetch_offsets(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.CommittedOffset, ...]:
        reply: tuple[m.CommittedOffset, ...]
        direct = await self.shortcut.found()
        if direct is not None and direct.serves("fetch_offsets"):
            reply = await direct.call("fetch_offsets", request, timeout_ms=timeout_ms)
        else:
            reply = await self._ask("fetch_offsets", request, timeout_ms)
        return reply

    async def list_groups(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.GroupInfo, ...]:
        reply: tuple[m.GroupInfo, ...] = await self._ask("list_groups", request, timeout_ms)
        return reply

    async def describe_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo:
        reply: m.GroupInfo = await self._ask("describe_group", request, timeout_ms)
        return reply

    async def delete_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.Done:
        reply: m.Done = await self._ask("delete_group", request, timeout_ms)
        return reply

    async def _ask(self, name: str, request: Any, timeout_ms: float) -> Any:
        method = getattr(self._handle, name).options(concurrency_group=CONTROL)
        return await call(method, request, timeout_ms=timeout_ms)


class RayDirectory:
    """Finds raystream's actors by their names in one Ray namespace. Handles are cached until a call is lost."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._node_id = ray.get_runtime_context().get_node_id()
        self._partitions: dict[str, RayPartition] = {}
        self._coordinators: dict[str, RayCoordinator] = {}
        self._controller: RayController | None = None
        self._controller_found = 0.0
        self.gone: ClusterGone | None = None

    @property
    def node_id(self) -> str:
        return self._node_id

    async def controller(self) -> RayController:
        self._refuse_gone()
        found, age_s = self._controller, time.monotonic() - self._controller_found
        if found is None or found.lost or age_s > CONTROLLER_AGE_S:
            lost = found is not None and found.lost
            found = RayController(await self._aside(lambda: self._find_broker(other=lost), "a broker"))
            self._controller, self._controller_found = found, time.monotonic()
        return found

    def _find_broker(self, *, other: bool) -> Any:
        """The broker of this node, or another one, at random: where this node's does not answer."""
        self._refuse_without_ray()
        brokers = list(find_brokers(self._namespace, self._node_id))
        if not brokers:
            raise Unavailable("no broker is running at the moment")
        return random.choice(brokers) if other else brokers[0]

    def partition(self, actor: str) -> RayPartition:
        self._refuse_gone()
        port = self._partitions.get(actor)
        if port is None:
            port = self._partitions[actor] = RayPartition(self._find(actor))
        return port

    def coordinator(self, actor: str) -> RayCoordinator:
        self._refuse_gone()
        port = self._coordinators.get(actor)
        if port is None:
            port = self._coordinators[actor] = RayCoordinator(self._find(actor))
        return port

    async def _aside(self, find: Callable[[], Any], what: str) -> Any:
        """`find` off the loop: Ray looks names up without a deadline, for ever once its head is gone."""
        found: concurrent.futures.Future[Any] = concurrent.futures.Future()
        found.set_running_or_notify_cancel()  # whoever gives up waiting does not make the late answer an error

        def run() -> None:
            try:
                found.set_result(find())
            except RaystreamError as error:
                found.set_exception(error)
            except Exception as error:
                found.set_exception(Unavailable(f"Ray cannot look up {what}: {error}"))

        threading.Thread(target=run, name="raystream-find", daemon=True).start()
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                return await asyncio.wrap_future(found)
        except TimeoutError:
            raise Unavailable(f"Ray did not look up {what} within {FIND_TIMEOUT_S:.0f} s") from None

    def _find(self, name: str) -> Any:
        self._refuse_without_ray()
        try:
            return find_actor(name, self._namespace)
        except RaystreamError:
            raise
        except Exception as error:
            raise Unavailable(f"Ray cannot look up the actor {name!r}: {error}") from error

    def close(self) -> None:
        """Ends the connections to endpoints. On the loop."""
        ports: list[RayPartition | RayCoordinator] = [*self._partitions.values(), *self._coordinators.values()]
        for port in ports:
            port.shortcut.close()

    def _refuse_without_ray(self) -> None:
        """Asked without one, Ray would connect this process anew of its own accord."""
        self._refuse_gone()
        if not ray.is_initialized():
            raise ClusterGone("Ray has shut down in this process: connect again")

    def _refuse_gone(self) -> None:
        if self.gone is not None:
            raise self.gone
