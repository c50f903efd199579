"""A cluster without topics, for tests that do not want another one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.cluster import FakeCluster


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake
