"""What a broker does about its replicas when the metadata changes, actors die, and logs turn out to be corrupt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from raystream import messages as m
from raystream.actors import reconciling
from raystream.actors.metadata import Metadata, encode
from raystream.actors.reconciling import QUARANTINE, Reconciler
from raystream.core.metadata import BrokerRecord, PartitionRecord, ReplicaRecord, TopicRecord
from raystream.core.records import Record, Removed, removed
from raystream.errors import NotLeader
from raystream.storage.files import DiskFiles

TOPIC_ID = "a" * 32
KEY = (TOPIC_ID, 0)
OWN = 1
TOPIC = TopicRecord(TOPIC_ID, "t", False, ("",), None, None, {}, 2)
PARTITION = PartitionRecord(TOPIC_ID, 0, (OWN, 2), (OWN, 2), OWN, 0, 0)


@dataclass
class Host:
    name: str
    pid: int = 1
    keys: set[tuple[str, int]] = field(default_factory=set)


class FakeHosts:
    """Opens whatever it is told to, in one actor each."""

    def __init__(self) -> None:
        self.held: dict[str, Host] = {}
        self.opened: list[m.ReplicaSpec] = []
        self.updated: list[m.ReplicaSpec] = []
        self.closed: list[tuple[str, int]] = []
        self.errors: list[str] = []
        self.deaf = False
        self.answered: Callable[[], None] = lambda: None
        """Called when the actors have answered, before anybody hears what."""

    def hosts(self) -> list[Host]:
        return list(self.held.values())

    def open(self, specs: Sequence[m.ReplicaSpec], *, internal: bool) -> dict[tuple[str, int], tuple[str, str]]:
        answers = {}
        for spec in specs:
            self.opened.append(spec)
            key = (spec.topic_id, spec.partition)
            error = self.errors.pop(0) if self.errors else ""
            name = f"actor {len(self.opened)}"
            if not error:
                self.held[name] = Host(name, keys={key})
                Path(spec.directory).mkdir(exist_ok=True)
            answers[key] = ("", error) if error else (name, "")
        self.answered()
        return answers

    def update(self, specs: Sequence[m.ReplicaSpec]) -> set[tuple[str, int]]:
        self.updated += specs
        return set() if self.deaf else {(spec.topic_id, spec.partition) for spec in specs}

    def close(self, keys: Iterable[tuple[str, int]]) -> None:
        self.closed += keys

    def drop(self, name: str) -> Host | None:
        return self.held.pop(name, None)

    def keep_spare(self) -> None:
        pass


class House:
    """One broker's reconciler; the controller takes every report and lets the metadata know of it."""

    def __init__(self, slot: Path) -> None:
        self.slot = slot
        self.metadata = Metadata()
        self.hosts = FakeHosts()
        self.reports: list[tuple[tuple[m.ServedReplica, ...], tuple[tuple[str, int], ...]]] = []
        self.unreachable = False
        self.silent = False
        self.lives = 1
        self.told: list[int] = []
        self.reconciler = Reconciler(
            self.metadata,
            self.hosts,  # type: ignore[arg-type]
            OWN,
            DiskFiles(),
            slot,
            "lease",
            self.report,
            self.begin_new_life,
            self.told.append,
        )

    def begin_new_life(self) -> None:
        self.lives += 1
        self.commit(BrokerRecord(OWN, self.lives))

    def commit(self, *records: Record | Removed) -> None:
        self.metadata.apply([encode(records)])

    def report(self, served: tuple[m.ServedReplica, ...], lost: tuple[tuple[str, int], ...]) -> int:
        if self.unreachable:
            raise NotLeader("no controller")
        self.reports.append((served, lost))
        if self.silent:
            return self.metadata.version + 1
        for each in served:
            known = self.metadata.was_opened((each.topic_id, each.partition), OWN)
            opened = known or bool(each.actor)
            self.commit(ReplicaRecord(each.topic_id, each.partition, OWN, each.actor, each.error, opened))
        if lost:
            self.commit(replace(PARTITION, leader=2, leader_epoch=7, partition_epoch=7))
        return self.metadata.version

    def start(self, *records: Record | Removed) -> None:
        self.commit(BrokerRecord(OWN, 1), BrokerRecord(2, 1), TOPIC, *records)
        self.reconciler.start()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.reconciler.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.005)


def test_what_the_metadata_wants_is_opened_and_reported(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    assert [spec.leader for spec in house.hosts.opened] == [OWN]
    assert house.reports == [((m.ServedReplica(*KEY, "actor 1"),), ())]


def test_open_replicas_hear_of_every_change(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    house.commit(replace(PARTITION, leader=2, leader_epoch=1, partition_epoch=1))
    until(lambda: house.hosts.updated and house.hosts.updated[-1].leader_epoch == 1)
    assert len(house.hosts.opened) == 1


def test_a_report_that_fails_is_made_again(house: House) -> None:
    house.unreachable = True
    house.start(PARTITION)
    until(lambda: house.hosts.opened)
    time.sleep(0.05)
    assert not house.reports
    house.unreachable = False
    until(lambda: house.reports)


def test_what_died_is_opened_only_as_the_controller_says_after_it_has_heard_of_it(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    house.silent = True
    house.reconciler.actor_lost("actor 1")
    until(lambda: house.reports[-1][1] == (KEY,))
    time.sleep(0.2)
    assert len(house.hosts.opened) == 1, "opened by what the metadata said before the death"
    house.silent = False
    house.commit(replace(PARTITION, leader=2, leader_epoch=7, partition_epoch=7))
    until(lambda: len(house.hosts.opened) == 2)
    assert house.hosts.opened[-1].leader_epoch == 7


def test_an_actor_that_dies_while_others_are_still_opening_is_counted_on_by_nobody(house: House) -> None:
    def die() -> None:
        house.hosts.answered = lambda: None
        house.reconciler.actor_lost("actor 1")
        until(lambda: "actor 1" not in house.hosts.held)

    house.hosts.answered = die
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    assert house.reports == [((m.ServedReplica(*KEY, "actor 2"),), ())]


def test_what_is_gone_from_the_metadata_is_closed_and_deleted(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    directory = house.slot / f"{TOPIC_ID}-0"
    assert directory.exists()
    house.commit(removed(PARTITION), removed(TOPIC))
    until(lambda: house.hosts.closed == [KEY] and not directory.exists())


def test_directories_that_the_metadata_does_not_know_are_kept_aside(house: House) -> None:
    stranger = house.slot / f"{'f' * 32}-3"
    stranger.mkdir()
    (stranger / "log").write_text("data")
    house.start()
    assert not stranger.exists()
    (kept,) = (house.slot / QUARANTINE).iterdir()
    assert (kept / "log").read_text() == "data"


def test_a_corrupt_replica_that_others_can_replace_begins_anew_in_a_new_life(house: House) -> None:
    directory = house.slot / f"{TOPIC_ID}-0"
    directory.mkdir()
    (directory / "log").write_text("damaged")
    house.hosts.errors = [f"{m.CORRUPT_LOG}a file is missing"]
    house.start(PARTITION)
    until(lambda: house.reports)
    time.sleep(0.1)
    assert len(house.hosts.opened) == 1 and (directory / "log").exists(), "somebody may still count on it"
    house.commit(replace(PARTITION, isr=(2,), leader=2, leader_epoch=1, partition_epoch=1))
    until(lambda: len(house.hosts.opened) == 2)
    assert house.lives == 2
    assert house.hosts.opened[-1].broker_incarnation == 2
    (kept,) = (house.slot / QUARANTINE).iterdir()
    assert (kept / "log").read_text() == "damaged"


def test_what_was_opened_before_must_be_there_the_next_time(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    house.reconciler.actor_lost("actor 1")
    until(lambda: len(house.hosts.opened) == 2)
    assert [spec.opened for spec in house.hosts.opened] == [False, True]
    assert not any(spec.opened for spec in house.hosts.updated)


def test_a_replica_that_is_gone_is_looked_for_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "OPEN_AGAIN_S", 0.05)
    monkeypatch.setattr(reconciling, "IDLE_S", 0.05)
    house.hosts.errors = [f"{m.LOST_LOG}the directory is gone"] * 2
    house.start(replace(PARTITION, replicas=(OWN,), isr=(OWN,)), ReplicaRecord(TOPIC_ID, 0, OWN, "", "", True))
    until(lambda: house.metadata.served_by(KEY, OWN).actor)  # type: ignore[union-attr]
    assert [spec.opened for spec in house.hosts.opened] == [True, True, True] and house.lives == 1


def test_a_replica_that_is_gone_and_counts_no_more_begins_anew_in_a_new_life(house: House) -> None:
    house.hosts.errors = [f"{m.LOST_LOG}the directory is gone"]
    house.start(PARTITION, ReplicaRecord(TOPIC_ID, 0, OWN, "", "", True))
    until(lambda: house.reports)
    assert house.reports[-1][0][0].error.startswith(m.LOST_LOG)
    house.commit(replace(PARTITION, isr=(2,), leader=2, leader_epoch=1, partition_epoch=1))
    until(lambda: len(house.hosts.opened) == 2)
    assert house.lives == 2
    assert not house.hosts.opened[-1].opened and house.hosts.opened[-1].broker_incarnation == 2


def test_the_only_corrupt_replica_is_put_aside_and_begins_empty_once_it_is_let_go_of(house: House) -> None:
    directory = house.slot / f"{TOPIC_ID}-0"
    directory.mkdir()
    (directory / "log").write_text("damaged")
    error = f"{m.CORRUPT_LOG}at byte 7"
    house.hosts.errors = [error]
    house.start(replace(PARTITION, replicas=(OWN,), isr=(OWN,)), ReplicaRecord(TOPIC_ID, 0, OWN, "", "", True))
    until(lambda: house.reports)
    house.commit(ReplicaRecord(TOPIC_ID, 0, OWN, "", f"{m.LET_GO}{error}", False))
    until(lambda: len(house.hosts.opened) == 2)
    assert house.lives == 2 and not house.hosts.opened[-1].opened
    (kept,) = (house.slot / QUARANTINE).iterdir()
    assert (kept / "log").read_text() == "damaged"


def test_only_a_corrupt_replica_is_kept_as_it_is(house: House) -> None:
    house.hosts.errors = [f"{m.CORRUPT_LOG}a file is missing"]
    alone = replace(PARTITION, replicas=(OWN,), isr=(OWN,))
    house.start(alone)
    until(lambda: house.reports)
    time.sleep(0.2)
    assert house.lives == 1 and not (house.slot / QUARANTINE).exists()


def test_a_replica_that_finds_its_log_wrong_is_reported(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    house.reconciler.replica_failed(KEY, f"{m.CORRUPT_LOG}it parts from what is committed")
    until(lambda: house.reports[-1][0] and house.reports[-1][0][0].error.startswith(m.CORRUPT_LOG))


def test_actors_that_live_on_are_taken_in_and_others_are_counted_as_lost(house: House) -> None:
    other = replace(PARTITION, partition=1)
    house.hosts.held["old"] = Host("old", keys={KEY})
    house.start(PARTITION, other, ReplicaRecord(TOPIC_ID, 0, OWN, "old"), ReplicaRecord(TOPIC_ID, 1, OWN, "dead"))
    until(lambda: house.reports)
    assert house.reports[0][1] == ((TOPIC_ID, 1),)
    until(lambda: house.hosts.opened)
    assert {spec.partition for spec in house.hosts.opened} == {1}


def test_who_leases_hears_up_to_where_the_replicas_have_been_told(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    house.commit(replace(PARTITION, leader=2, leader_epoch=1, partition_epoch=1))
    until(lambda: house.told and house.told[-1] == house.metadata.version)
    assert house.hosts.updated[-1].leader_epoch == 1


def test_a_lease_waits_for_a_replica_that_does_not_take_its_news(house: House) -> None:
    house.start(PARTITION)
    assert house.reconciler.wait_until_settled(10)
    until(lambda: house.told and house.told[-1] == house.metadata.version)
    house.hosts.deaf = True
    house.commit(replace(PARTITION, leader=2, leader_epoch=1, partition_epoch=1))
    until(lambda: house.hosts.updated)
    time.sleep(0.1)
    assert house.told[-1] < house.metadata.version
    house.hosts.deaf = False
    until(lambda: house.told[-1] == house.metadata.version)


def test_what_could_not_be_opened_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "OPEN_AGAIN_S", 0.05)
    monkeypatch.setattr(reconciling, "IDLE_S", 0.05)
    house.hosts.errors = ["the disk is full"]
    house.start(PARTITION)
    until(lambda: len(house.reports) == 2)
    assert [served[0].error for served, _ in house.reports] == ["the disk is full", ""]
