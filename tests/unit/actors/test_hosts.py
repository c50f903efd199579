"""Which partition actor gets which replica, and what is left of those that do not start, or die."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from raystream import messages as m
from raystream.actors import hosts as hosts_module
from raystream.actors.hosts import MAX_HOSTS, Hosts
from raystream.errors import ActorLost, RequestTimeout


class Reference(NamedTuple):
    """What a call of an actor gives at once."""

    actor: Actor
    work: Callable[[], Any]


class Actor:
    """Does what it is asked once somebody waits for it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.starts = True
        self.on_close: Callable[[], None] = lambda: None
        self.pid = self._method(lambda: 1_000 + number)
        self.open = self._method(_opened)
        self.close = self._method(lambda _: self.on_close())

    def _method(self, work: Callable[..., Any]) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: Reference(self, partial(work, *arguments)))


def _opened(specs: tuple[m.ReplicaSpec, ...]) -> tuple[SimpleNamespace, ...]:
    return tuple(SimpleNamespace(topic_id=s.topic_id, partition=s.partition, error="") for s in specs)


class Ray:
    """Starts actors, except those that the test does not let start."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.ended: list[str] = []
        self.slow: set[int] = set()
        """Which actors, counted from 0, do not start in time."""

    def start(self, *_: object, name: str, **__: object) -> Actor:
        actor = Actor(name, len(self.actors))
        actor.starts = len(self.actors) not in self.slow
        self.actors[name] = actor
        return actor

    def wait(self, answer: Reference, _timeout_ms: float) -> Any:
        if not answer.actor.starts:
            raise RequestTimeout("there is no process for it yet")
        return answer.work()

    def end(self, actor: Actor) -> None:
        self.ended.append(actor.name)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setattr(hosts_module, "start_actor", made.start)
    monkeypatch.setattr(hosts_module, "wait_for", made.wait)
    monkeypatch.setattr(hosts_module, "end_actor", made.end)
    monkeypatch.setattr(hosts_module, "when_gone", lambda pid, then: None)
    return made


@pytest.fixture
def hosts(ray: Ray, tmp_path: Path) -> Hosts:
    return Hosts(namespace="n", node_id="here", directory=tmp_path, cluster="c", lost=lambda name: None)


def specs(*partitions: int) -> list[m.ReplicaSpec]:
    return [
        m.ReplicaSpec(
            topic="t",
            topic_id="a" * 32,
            partition=partition,
            directory="",
            config={},
            schemas=(),
            leader_epoch=0,
            incarnation=0,
        )
        for partition in partitions
    ]


def test_every_replica_gets_an_actor_of_its_own_and_then_they_share(hosts: Hosts, ray: Ray) -> None:
    served = hosts.open(specs(*range(MAX_HOSTS + 3)), internal=False)
    assert all(name and not error for name, error in served.values())
    assert sorted(len(host.keys) for host in hosts.hosts()) == [1] * (MAX_HOSTS - 3) + [2] * 3
    hosts.open(specs(100), internal=True)
    assert sum(host.internal for host in hosts.hosts()) == 1
    assert not ray.ended


def test_actors_that_do_not_start_in_time_are_ended(hosts: Hosts, ray: Ray) -> None:
    ray.slow = {1}
    with pytest.raises(RequestTimeout):
        hosts.open(specs(0, 1, 2), internal=False)
    names = list(ray.actors)
    assert [host.name for host in hosts.hosts()] == names[:1]
    assert ray.ended == names[1:], "each attempt would leave some behind that the next has to wait for"
    ray.slow = set()
    assert all(name for name, _ in hosts.open(specs(0, 1, 2), internal=False).values())
    assert len(hosts.hosts()) == 3


def test_an_actor_that_dies_while_its_last_replica_is_closed_is_dropped_once(hosts: Hosts, ray: Ray) -> None:
    ((name, _),) = hosts.open(specs(0), internal=False).values()

    def die() -> None:
        hosts.drop(name)
        raise ActorLost("killed")

    ray.actors[name].on_close = die
    hosts.close([("a" * 32, 0)])
    assert hosts.hosts() == []
