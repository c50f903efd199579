"""Ray's own RPC fault injection: which of its calls are lost, and how the processes of a cluster are told.

Ray reads `RAY_testing_rpc_failure` in every process (JSON since 2.5x: calls by name, percentages). A call can be lost
before it is sent, its answer can be lost, or it is reported lost while it is still on its way. The caller sees
UNAVAILABLE each time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

VARIABLE: Final = "RAY_testing_rpc_failure"
LOGGED: Final = b"Inject RPC"
CALLS: Final = (
    "CoreWorkerService.grpc_client.PushTask",  # every call of an actor's method, and an actor's creation
    "CoreWorkerService.grpc_client.KillActor",
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "NodeManagerService.grpc_client.ReturnWorkerLease",
    "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.GetActorInfo",
    "ray::rpc::ActorInfoGcsService.grpc_client.GetNamedActorInfo",
    "ray::rpc::ActorInfoGcsService.grpc_client.KillActorViaGcs",
    "ray::rpc::NodeInfoGcsService.grpc_client.GetAllNodeInfo",
)
"""Those through which raystream's actors are made, found, called and ended."""


def setting(percent: int) -> str:
    """The variable's value that loses so many of a hundred calls in each of the three ways."""
    share = {"req_failure_prob": percent, "resp_failure_prob": percent, "in_flight_failure_prob": percent}
    return json.dumps({call: {"num_failures": -1, **share} for call in CALLS})


def count(logs: Path) -> int:
    """How many calls were lost, as Ray's logs under this directory say."""
    files = (path for path in logs.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.read_bytes().count(LOGGED) for path in files if path.suffix in {".log", ".out", ".err"})
