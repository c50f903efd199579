"""The public `Cluster` over a cluster of plain objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from raystream.actors.session import Session
from raystream.cluster import Cluster
from tests.fakes.cluster import FakeCluster

ADDRESS = "10.0.0.1:6379"


def connected(fake: FakeCluster) -> Cluster:
    """As `raystream.connect` returns it. Closing it leaves the fake as it is."""
    session = SimpleNamespace(
        loop=fake.loop,
        routing=fake.routing,
        address=ADDRESS,
        data_dir="/data",
        namespace="raystream",
        release=lambda: None,
    )
    return Cluster(lambda: cast(Session, session))
