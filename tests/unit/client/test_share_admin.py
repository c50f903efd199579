"""What an administrator sees of a share group: how far it is behind, and what becomes of its records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raystream import messages as m
from raystream.client.admin import Admin
from raystream.types import PartitionLag, SharePartitionDescription
from tests.fakes.cluster import FakeCluster

SHARE = m.SharePartitionInfo(
    topic="t",
    partition=0,
    start_offset=2,
    acquired=1,
    released=0,
    dying=0,
    settled=2,
    accepted=3,
    archived=1,
    dead_lettered=0,
    lost=0,
)
INFO = m.GroupInfo(
    group="w",
    kind="share",
    state="stable",
    epoch=0,
    topics=("t",),
    members=(m.MemberInfo(member_id="a", client="host:1", epoch=0, owned=(), last_heartbeat_ms_ago=5),),
    offsets=(m.CommittedOffset("t", 0, 2),),
    shares=(SHARE,),
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    async def describe(request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo:
        return INFO

    with FakeCluster() as cluster:
        monkeypatch.setattr(cluster.coordinator_port, "describe_group", describe)
        cluster.create("t")
        with cluster.producer() as producer:
            producer.send_many("t", [b"%d" % number for number in range(10)]).result(10)
        yield cluster


def test_a_share_group_is_behind_by_what_is_not_settled(cluster: FakeCluster) -> None:
    group = cluster.loop.run(Admin(cluster.routing).describe_group("w"))
    assert (group.kind, group.state, group.members, group.lag) == ("share", "stable", 1, 6)
    assert group.partition_list == [PartitionLag("t", 0, 2, 10, 6, None)]
    assert group.share_list == [SharePartitionDescription("t", 0, 2, 1, 0, 0, 2, 3, 1, 0, 0)]
