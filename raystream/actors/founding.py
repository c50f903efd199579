"""How a broker's empty disk becomes part of a cluster: it joins the one that is there, or founds one where none can be.

Only the broker of Ray's head founds, and only when the broker of every other node has said that its disk is empty too:
a head whose disk was wiped must not begin a second cluster beside the data of the first.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from raystream import messages as m
from raystream.actors.peers import Peers
from raystream.actors.raft_disk import RaftDisk
from raystream.core.raft_messages import NOTHING, Snapshot, Voter, first_snapshot
from raystream.errors import InvalidArgument, RaystreamError, Unavailable
from raystream.storage.files import Files

logger = logging.getLogger("raystream.broker")

METADATA: Final = "metadata"
DIRECTORY_ID: Final = "directory-id"
RETRY_S: Final = 0.2
JOIN_TIMEOUT_MS: Final = 10_000.0
FOUNDER_ID: Final = 0


def open_disk(
    files: Files,
    slot: Path,
    *,
    peers: Peers,
    founder: bool,
    request: Callable[[str, int | None, str | None], m.RegisterBrokerRequest],
    enlist: Callable[[], None],
    timeout_s: float,
) -> RaftDisk:
    """The disk of a member. Raises Unavailable where no cluster was found to join in time, and the storage errors."""
    directory = str(slot / METADATA)
    if RaftDisk.exists(files, directory):
        return RaftDisk.open(files, directory)
    directory_id = _directory_id(files, slot)
    deadline = time.monotonic() + timeout_s
    why = "no broker of a cluster has answered"
    while time.monotonic() < deadline:
        answers = peers.ask_all()
        members = [reply for reply in answers.values() if reply is not None and reply.cluster_id is not None]
        for member in members:
            try:
                joined = _join(peers, member, request(directory_id, None, None))
            except RaystreamError as error:
                if not error.retriable:
                    raise
                why = str(error)
                continue
            return _format(files, directory, Voter(joined.broker_id, directory_id), joined.cluster_id, NOTHING)
        if founder and not members:
            if all(reply is not None for reply in answers.values()):
                voter = Voter(FOUNDER_ID, directory_id)
                return _format(files, directory, voter, secrets.token_hex(16), first_snapshot((voter,)))
            why = "the brokers of other nodes have not said whether they hold a cluster's data"
            enlist()
        time.sleep(RETRY_S)
    raise Unavailable(f"{slot} is empty, and it cannot join a cluster: {why}")


def foreign(own: m.HelloReply, others: Iterable[m.HelloReply | None], head: str, root: Path) -> InvalidArgument | None:
    """Why this broker's disk does not belong to the cluster of this Ray, if so: another broker is of another cluster,
    which has a controller. Where both have one, the cluster of Ray's head node (`head`) is the one that counts."""
    for reply in others:
        if reply is None or reply.cluster_id is None or own.cluster_id is None or reply.cluster_id == own.cluster_id:
            continue
        if reply.controller is not None and (own.controller is None or reply.node_id == head):
            return InvalidArgument(
                f"{root} belongs to cluster {own.cluster_id}, and this is cluster {reply.cluster_id}: start the broker "
                "with another data directory, or move that one away"
            )
    return None


def _join(peers: Peers, member: m.HelloReply, request: m.RegisterBrokerRequest) -> m.RegisterBrokerReply:
    assert member.broker_id is not None
    decided: Any = peers.call(member.broker_id, "hand_on", "register", request, timeout_ms=JOIN_TIMEOUT_MS)
    reply: m.RegisterBrokerReply = decided.reply
    return reply


def _format(files: Files, directory: str, voter: Voter, cluster_id: str, snapshot: Snapshot) -> RaftDisk:
    RaftDisk.format(files, directory, identity=voter, cluster_id=cluster_id, snapshot=snapshot)
    return RaftDisk.open(files, directory)


def _directory_id(files: Files, slot: Path) -> str:
    """Drawn once for a disk, and written down before anybody hears of it: who asks again is the same."""
    path = str(slot / DIRECTORY_ID)
    try:
        found = files.read(path).decode()
    except FileNotFoundError:
        found = secrets.token_hex(16)
        files.write_atomically(path, found.encode())
    return found
