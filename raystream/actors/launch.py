"""Where plain classes become Ray actors and functions Ray tasks: the only home of `ray.remote`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystream.errors import CoordinatorNotAvailable, Unavailable

APPEND: Final = "append"
FETCH: Final = "fetch"
CONTROL: Final = "control"
REPLICATE: Final = "replicate"

APPEND_THREADS: Final = 32
FETCH_THREADS: Final = 64
CONTROL_THREADS: Final = 8
REPLICATE_THREADS: Final = 16
MAX_PARKED_FETCHES: Final = FETCH_THREADS - 8
"""Fetches that may wait in one actor at a time; one more is answered empty at once."""

GROUPS: Final = {APPEND: APPEND_THREADS, FETCH: FETCH_THREADS, CONTROL: CONTROL_THREADS, REPLICATE: REPLICATE_THREADS}


def start_actor(
    kind: type,
    *args: Any,
    name: str,
    namespace: str,
    node_id: str | None = None,
    max_restarts: int = 0,
) -> Any:
    """Starts a detached, named actor of the plain class `kind`, or finds the one that has the name already.

    It takes no CPU from the user's tasks. With `max_restarts=0` a broker watches it; -1 leaves that to Ray.
    """
    options: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": max_restarts,
        "max_task_retries": 0,
        "concurrency_groups": GROUPS,
    }
    if node_id is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(**options)(kind).remote(*args)


def start_local_actor(kind: type, *args: Any) -> Any:
    """Starts an unnamed actor that ends with whoever started it."""
    return ray.remote(num_cpus=0, max_restarts=0)(kind).remote(*args)


def find_actor(name: str, namespace: str) -> Any:
    """The handle of a named actor. Raises Unavailable while nobody has the name."""
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        kind = CoordinatorNotAvailable if "coordinator" in name else Unavailable
        raise kind(f"no actor {name!r} is running at the moment") from None


def end_actor(handle: Any) -> None:
    """Ends an actor's process at once."""
    ray.kill(handle, no_restart=True)


def start_task(function: Callable[..., Any], *args: Any, options: Mapping[str, Any]) -> Any:
    """Starts a Ray task and returns its reference."""
    return ray.remote(**options)(function).remote(*args)
