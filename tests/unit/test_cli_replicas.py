"""The commands that move replicas and drain brokers, against a cluster that is only pretended."""

from __future__ import annotations

from typing import Any, Self

import pytest

import raystream
from raystream.cli import main
from raystream.commands import localray
from raystream.errors import InvalidArgument
from raystream.types import BrokerDescription, ClientQuota, Rows, TopicDescription


class FakeCluster:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def describe_topic(self, name: str) -> TopicDescription:
        return TopicDescription(name, "raw", 2, 3, 0, 0, None, None)

    def alter_topic(self, name: str, config: Any, replication_factor: int | None = None) -> None:
        self.calls.append(("alter_topic", name, config, replication_factor))

    def reassign(self, name: str, replicas: Any) -> TopicDescription:
        self.calls.append(("reassign", name, replicas))
        return self.describe_topic(name)

    def elect_leaders(self, topic: str | None, unclean: bool) -> None:
        self.calls.append(("elect_leaders", topic, unclean))

    def brokers(self) -> Rows[BrokerDescription]:
        return Rows([BrokerDescription(1, "n", "draining", 3, "/data", 1 << 30, 42, False, "a")])

    def drain_broker(self, broker_id: int, drain: bool) -> None:
        self.calls.append(("drain_broker", broker_id, drain))

    def remove_broker(self, broker_id: int) -> None:
        raise InvalidArgument(f"broker {broker_id} holds 3 replicas: move them first")

    def quotas(self) -> Rows[ClientQuota]:
        return Rows([ClientQuota("etl", 1000, None)])

    def set_quota(self, client_id: str, **limits: int | None) -> None:
        self.calls.append(("set_quota", client_id, limits))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(localray, "use_token", lambda: None)
    monkeypatch.setattr(raystream, "connect", lambda *_, **__: fake)
    return fake


def test_replicas_are_moved_and_counted_as_said(cluster: FakeCluster) -> None:
    assert main(["topic", "reassign", "flights", "--replicas", "0=1,2", "1=2,3"]) == 0
    assert main(["topic", "alter", "flights", "--replication-factor", "3"]) == 0
    assert main(["topic", "elect"]) == 0
    assert main(["topic", "elect", "flights", "--unclean"]) == 0
    assert cluster.calls == [
        ("reassign", "flights", {0: (1, 2), 1: (2, 3)}),
        ("alter_topic", "flights", {}, 3),
        ("elect_leaders", None, False),
        ("elect_leaders", "flights", True),
    ]


def test_brokers_are_listed_drained_and_removed(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["1", "n", "draining", "no", "3"]
    assert main(["broker", "drain", "1"]) == 0
    assert main(["broker", "drain", "1", "--undo"]) == 0
    assert cluster.calls == [("drain_broker", 1, True), ("drain_broker", 1, False)]
    capsys.readouterr()
    assert main(["broker", "remove", "1"]) == 2
    assert capsys.readouterr().err == "raystream: broker 1 holds 3 replicas: move them first\n"


def test_quotas_are_listed_set_and_removed(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quota", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["etl", "1,000"]
    assert main(["quota", "set", "etl", "--produce", "1000"]) == 0
    assert main(["quota", "remove", "etl"]) == 0
    assert cluster.calls == [
        ("set_quota", "etl", {"produce_bytes_per_s": 1000, "fetch_bytes_per_s": None}),
        ("set_quota", "etl", {}),
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["quota", "set", "etl"])
    assert stopped.value.code == 2
    assert "give --produce, --fetch or both" in capsys.readouterr().err
