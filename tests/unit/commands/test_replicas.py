"""The commands for replicas and brokers, over the real `Cluster` and a controller of plain objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

import raystream
from raystream.cli import main
from raystream.commands import lifecycle, localray
from tests.fakes.cluster import FakeCluster
from tests.fakes.connection import ADDRESS, connected

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    logger = logging.getLogger("raystream")
    level = logger.level
    monkeypatch.setattr(localray, "use_token", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with FakeCluster(brokers=4) as fake:
        fake.create("t", 2, replication_factor=3)
        monkeypatch.setitem(vars(raystream), "connect", lambda address, data_dir: connected(fake))
        monkeypatch.setattr(lifecycle, "_owner", lambda shell, embedded: ADDRESS)
        yield fake
    logger.setLevel(level)


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def refused(capsys: Printed, *words: str) -> str:
    """What argparse says of wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: raystream") and "Traceback" not in err
    return err


# raystream topic ----------------------------------------------------------------------------------------------------


def test_reassign_shows_where_replicas_are(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["topic", "reassign", "t", "--replicas", "0=3,1", "1=2"]) == 0
    head, first, second = table(capsys.readouterr().out)
    assert head[:5] == ["partition", "leader", "replicas", "in", "sync"]
    assert first[:6] == ["0", "3", "3,", "1", "3,", "1"]
    assert second[:4] == ["1", "2", "2", "2"]


def test_reassign_for_programs(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["topic", "reassign", "t", "--replicas", "0=3, 1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["partition_list"][0]["replicas"] == [3, 1]
    assert found["partition_list"][0]["leader"] == 3


@pytest.mark.parametrize(
    ("placement", "code", "sentence"),
    [
        ("0=1,1", 2, "partition 0: give one broker or more, each once, not [1, 1]"),
        ("0=9", 2, "(9,) cannot hold a partition: there is no broker 9"),
        ("2=1", 1, "topic 't' has partitions 0 to 1, not 2"),
    ],
)
def test_an_impossible_reassignment(
    fake: FakeCluster, capsys: Printed, placement: str, code: int, sentence: str
) -> None:
    assert main(["topic", "reassign", "t", "--replicas", placement]) == code
    assert capsys.readouterr() == ("", f"raystream: {sentence}\n")


@pytest.mark.parametrize("placement", ["0", "0=", "=1", "0=a", "-1=1", "0=-1", "0=1;2", "0=" + "9" * 5000])
def test_no_placement_is_wrong_usage(fake: FakeCluster, capsys: Printed, placement: str) -> None:
    assert "is not PARTITION=BROKER,BROKER,…" in refused(capsys, "topic", "reassign", "t", f"--replicas={placement}")


def test_a_partition_named_twice_is_wrong_usage(fake: FakeCluster, capsys: Printed) -> None:
    assert "a partition is named twice" in refused(capsys, "topic", "reassign", "t", "--replicas", "0=1", "0=2")
    assert fake.changes == []


def test_the_replication_factor_is_altered(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["topic", "alter", "t", "--replication-factor", "2"]) == 0
    assert capsys.readouterr().out == "t: 2 partitions, 2 replicas\n"
    words = ["topic", "alter", "t", "--replication-factor", "1", "--partitions", "3", "--config", "flush=os"]
    assert main(words) == 0
    assert capsys.readouterr().out == "t: 3 partitions, 1 replica, flush=os\n"
    assert "whole number above 0" in refused(capsys, "topic", "alter", "t", "--replication-factor", "0")
    assert main(["topic", "alter", "t", "--replication-factor", "9"]) == 2
    assert capsys.readouterr().err == "raystream: replication_factor=9: this cluster has 4 brokers\n"


def test_elections(fake: FakeCluster, capsys: Printed) -> None:
    fake.fence(0)
    fake.unfence(0)
    assert [placed.leader for placed in fake.placed()] == [1, 1]
    assert main(["topic", "elect", "t"]) == 0
    assert [placed.leader for placed in fake.placed()] == [0, 1]
    assert capsys.readouterr().out == "t: preferred replicas lead where they are in sync\n"
    assert main(["topic", "elect", "--unclean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"topic": None}
    assert [(change.topic, change.unclean) for change in fake.changes] == [("t", False), (None, True)]
    assert main(["topic", "elect", "u"]) == 1
    assert capsys.readouterr().err == "raystream: there is no topic 'u'\n"


def test_the_help_warns_of_unclean_elections(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["topic", "elect", "--help"])
    assert stopped.value.code == 0
    assert "RECORDS THAT IT LACKS ARE LOST" in " ".join(capsys.readouterr().out.split())


# raystream broker ---------------------------------------------------------------------------------------------------


def test_brokers_are_a_table(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["broker", "list"]) == 0
    head, first, *_ = table(capsys.readouterr().out)
    assert head == ["broker", "node", "state", "controller", "partitions", "data", "free", "pid"]
    assert first[:5] == ["0", "host-0", "running", "yes", "1"]
    fake.brokers[1].rack = "b"
    fake.fence(1)
    assert main(["broker", "list"]) == 0
    head, _, second, *_ = table(capsys.readouterr().out)
    assert "rack" in head and second[:7] == ["1", "host-1", "not", "heard", "no", "2", "b"]


def test_brokers_for_programs(fake: FakeCluster, capsys: Printed) -> None:
    fake.brokers[1].rack = "b"
    assert main(["--json", "broker", "list"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(broker["broker_id"], broker["state"], broker["rack"]) for broker in found[:2]] == [
        (0, "running", ""),
        (1, "running", "b"),
    ]


def test_a_broker_is_drained_and_removed(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["broker", "remove", "1"]) == 2
    assert "raystream: broker 1 holds replicas of 2 partitions" in capsys.readouterr().err
    assert main(["broker", "drain", "1"]) == 0
    assert capsys.readouterr().out.startswith("broker 1 is being drained")
    assert main(["broker", "drain", "1", "--undo"]) == 0
    assert capsys.readouterr().out == "broker 1 takes replicas again\n"
    assert main(["broker", "drain", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"broker": 1, "draining": True}
    assert main(["broker", "remove", "1"]) == 0
    assert capsys.readouterr().out == "broker 1 is forgotten\n"
    assert main(["broker", "drain", "1"]) == 1
    assert capsys.readouterr().err == "raystream: there is no broker 1\n"


@pytest.mark.parametrize("words", [[], ["drain"], ["remove"], ["drain", "first"], ["drain", "-1"], ["remove", "1.0"]])
def test_wrong_usage(fake: FakeCluster, capsys: Printed, words: list[str]) -> None:
    refused(capsys, "broker", *words)
    assert fake.changes == []


# raystream status ---------------------------------------------------------------------------------------------------


def test_status_where_all_is_well(fake: FakeCluster, capsys: Printed) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert table(out)[1] == ["health", "ok"]
    assert "state" in out and "rack" not in out


def test_status_where_something_is_not(fake: FakeCluster, capsys: Printed) -> None:
    fake.brokers[0].rack = "a"
    fake.fence(3)
    assert main(["status"]) == 1
    out = capsys.readouterr().out
    assert "broker 3 (host-3) is not heard; partition t-1 has 2 of 3 replicas in sync" in out
    assert "rack" in out and "not heard" in out
    assert main(["status", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["health"]["ok"] is False and len(found["health"]["problems"]) == 2
    assert found["brokers"][3]["state"] == "not heard"
