"""The order of a run of all tests: simulated worlds go on beside all others, and what they said is asked for last."""

from __future__ import annotations

import pytest

from tests.sim.beside import worlds
from tests.sim.cluster.ordinary import RUNS

MANY = 1_000
"""A run of so many tests has others for worlds to go on beside."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within both parts the order stays, which may be a random one."""
    items.sort(key=lambda item: item.path.name == "test_cluster_sim.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    if len(session.items) >= MANY and not session.config.option.collectonly:
        worlds.begin(RUNS)


def pytest_sessionfinish() -> None:
    worlds.stop()
