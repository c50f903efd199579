"""Between brokers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raystream.messages.protocol import PROTOCOL


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """What a broker is started with. `root` None: $RAYSTREAM_DATA or ~/.raystream of the broker's node.
    `cluster` names this life of the Ray cluster; it is the head's node id. `embedded`: its starter owns the root."""

    namespace: str
    root: str | None
    cluster: str
    address: str
    embedded: bool
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class BrokerReady:
    """What a broker says once it serves."""

    root: str
    cluster_id: str
    broker_id: int
    pid: int
    problems: tuple[str, ...] = ()
    """Why brokers of other nodes have not joined."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply:
    """What a broker says of itself: who its disk says it is (None on an empty one), and whom it takes for the
    controller. `error`: why it does not serve."""

    actor: str
    node_id: str
    broker_id: int | None
    directory_id: str
    cluster_id: str | None
    controller: int | None
    error: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterBrokerRequest:
    """A broker that starts. `broker_id` and `cluster_id` are what its disk says, None on an empty one: it gets an id.

    `directory_id` names the disk, `rack` is the Ray node's label. `clean` says that the disk holds all that was ever
    acknowledged from it.
    """

    directory_id: str
    broker_id: int | None
    cluster_id: str | None
    actor: str
    node_id: str
    node: str
    rack: str
    data_dir: str
    pid: int
    clean: bool = True
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterBrokerReply:
    """Who the broker is from now on, in this life."""

    cluster_id: str
    broker_id: int
    incarnation: int
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHeartbeatRequest:
    """A broker's sign of life."""

    broker_id: int
    incarnation: int
    coordinator: str = ""
    free_bytes: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHeartbeatReply:
    """`lease_ms` counts from the sending of the heartbeat, once the broker's replicas have been told what the metadata
    of that `version` says; 0: the controller may not be one any more."""

    lease_ms: float
    version: int
    free_bytes: tuple[tuple[int, int], ...] = ()
    """(broker id, bytes) of every broker's disk."""


CORRUPT_LOG: Final = "corrupt log: "
"""How the `error` of a replica begins whose disk lacks, or holds otherwise, what was committed."""

LET_GO: Final = "let go of: "
"""Before the `error` of the only replica whose corrupt log is to be put aside, so that it begins empty."""

LOST_LOG: Final = f"{CORRUPT_LOG}lost: "
"""How it begins where all of the replica's files are gone: they are looked for again and again."""


@dataclass(frozen=True, slots=True)
class ServedReplica:
    """Which actor serves a replica; "" and `error` where none can."""

    topic_id: str
    partition: int
    actor: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasChangedRequest:
    """`served` replicas are open in an actor now, or cannot be; those of `lost` had theirs die."""

    broker_id: int
    incarnation: int
    served: tuple[ServedReplica, ...] = ()
    lost: tuple[tuple[str, int], ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterIsrRequest:
    """A leader's wish: this ISR, as (broker id, incarnation) each; -1 for a member whose incarnation is not known."""

    topic_id: str
    partition: int
    leader: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[tuple[int, int], ...]
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the controller decided, and the version of the metadata that holds it."""

    reply: Any
    version: int
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReassignRequest:
    """Moves partitions of a topic to other brokers: (partition, its replicas, the preferred leader first) each."""

    topic: str
    replicas: tuple[tuple[int, tuple[int, ...]], ...]
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectLeadersRequest:
    """Leads go back to preferred replicas, of one topic or of all; `unclean` takes any live replica where no eligible
    one is left, and loses what it lacks."""

    topic: str | None = None
    unclean: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBrokerRequest:
    """Moves everything away from a broker, or takes that back; with `remove` the drained broker is forgotten."""

    broker_id: int
    drain: bool = True
    remove: bool = False
    protocol: int = PROTOCOL
