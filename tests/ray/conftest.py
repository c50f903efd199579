"""One embedded cluster per session, for every test that does not end it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import ray

import raystream as rs

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAYSTREAM_NOTICES", "0")

LAST_LINES = 40


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a failure stands what the cluster says of itself: the next run may not show it."""
    report = yield
    used = item.funcargs.get("cluster")
    if report.when == "call" and report.failed and isinstance(used, rs.Cluster):
        report.sections.insert(0, ("the cluster", "\n".join(_state(used))))
    return report


def _state(cluster: rs.Cluster) -> Iterator[str]:
    for question in (cluster.health, cluster.brokers, cluster.groups):
        try:
            yield f"{question.__name__}: {question()}"
        except rs.RaystreamError as error:
            yield f"{question.__name__}: {error}"
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = [line for file in logs.glob("worker-*.err") for line in file.read_text().splitlines()]
    yield from sorted(line for line in lines if " raystream." in line)[-LAST_LINES:]  # each begins with the time


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Cluster]:
    with rs.connect(data_dir=tmp_path_factory.mktemp("cluster")) as connected:
        yield connected


@pytest.fixture
def topic(cluster: rs.Cluster, topic_name: Callable[[], str]) -> str:
    """A raw topic of one partition."""
    return cluster.create_topic(topic_name()).name


_numbers = itertools.count()


@pytest.fixture
def topic_name() -> Callable[[], str]:
    return lambda: f"t{next(_numbers)}"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path
