"""A cluster without topics, for tests that do not want another one; and what tests of transactions begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raystream.client.producer import Producer
from tests.fakes.cluster import FakeCluster, FakeTopic
from tests.fakes.transactions import TransactionalCoordinator


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake


@pytest.fixture
def coordinator(cluster: FakeCluster) -> TransactionalCoordinator:
    return TransactionalCoordinator(cluster)


@pytest.fixture
def topic(cluster: FakeCluster) -> FakeTopic:
    return cluster.create("t", 2)


@pytest.fixture
def producer(cluster: FakeCluster, coordinator: TransactionalCoordinator, topic: FakeTopic) -> Producer:
    return cluster.producer(transactional_id="tx", linger_ms=0)
