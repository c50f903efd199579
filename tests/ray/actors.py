"""The processes of a cluster's actors, for tests that kill them."""

from __future__ import annotations

import contextlib
import time

import ray

NAMESPACE = "raystream"


def pids(prefix: str, timeout_s: float = 30) -> list[int]:
    """Those of living actors with such names. Ray goes on naming one for a moment after it was killed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = []
        for name in ray.util.list_named_actors():
            if name.startswith(prefix):
                with contextlib.suppress(ray.exceptions.RayActorError, ValueError):
                    handle = ray.get_actor(name, namespace=NAMESPACE)
                    pid = handle.pid.options(concurrency_group="control").remote()
                    found.append(int(ray.get(pid, timeout=10)))
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no actor {prefix}… lives")
