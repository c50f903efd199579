"""One embedded cluster per session, for every test that does not end it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import raystream as rs

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAYSTREAM_NOTICES", "0")


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
