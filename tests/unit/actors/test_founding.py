"""Whose cluster a broker's disk belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystream import messages as m
from raystream.actors.founding import foreign

ROOT = Path("/data")


def hello(node: str, cluster: str | None, controller: int | None) -> m.HelloReply:
    return m.HelloReply(
        actor=f"broker of {node}",
        node_id=node,
        broker_id=0,
        directory_id=node,
        cluster_id=cluster,
        controller=controller,
    )


@pytest.mark.parametrize(
    ("own", "other", "refused"),
    [
        (hello("b", "ours", 0), hello("head", "ours", 0), False),
        (hello("b", "theirs", None), hello("head", "ours", 0), True),
        (hello("b", "theirs", 1), hello("head", "ours", 0), True),
        (hello("head", "ours", 0), hello("b", "theirs", 1), False),
        (hello("head", "ours", None), hello("b", "theirs", 1), True),
        (hello("b", "theirs", None), hello("head", "ours", None), False),
        (hello("b", None, None), hello("head", "ours", 0), False),
        (hello("b", "ours", None), hello("head", None, None), False),
    ],
    ids=[
        "one cluster",
        "without a controller of its own",
        "a whole cluster of its own",
        "the head's cluster counts",
        "the head's disk is the stranger",
        "nobody can tell yet",
        "an empty disk",
        "the other's disk is empty",
    ],
)
def test_a_disk_of_another_cluster_is_refused(own: m.HelloReply, other: m.HelloReply, refused: bool) -> None:
    error = foreign(own, (None, other), "head", ROOT)
    assert (error is not None) == refused
    if error is not None:
        assert f"{ROOT} belongs to cluster {own.cluster_id}, and this is cluster {other.cluster_id}" in str(error)
