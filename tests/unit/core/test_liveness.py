"""Who is heard, on a clock made by hand."""

from __future__ import annotations

from raystream.core.liveness import Grants, Liveness, lease_until_ms


def test_a_broker_expires_when_its_timeout_is_over() -> None:
    liveness = Liveness(1_000)
    liveness.heard(2, 500)
    liveness.heard(1, 100)
    assert liveness.expired(1_099) == []
    assert liveness.expired(1_100) == [1]
    assert liveness.expired(2_000) == [1, 2]
    liveness.heard(1, 1_900)
    assert liveness.expired(2_000) == [2]


def test_a_lease_is_over_before_its_broker_expires() -> None:
    """However long the heartbeat took to arrive, and its answer to come back."""
    liveness = Liveness(1_000)
    liveness.heard(1, 130)
    assert liveness.expired(lease_until_ms(sent_ms=100, lease_ms=900)) == []
    assert lease_until_ms(sent_ms=100, lease_ms=900) == 1_000


def test_what_arrives_late_takes_nothing_back() -> None:
    liveness = Liveness(1_000)
    liveness.heard(1, 500)
    liveness.heard(1, 400)
    assert liveness.expired(1_499) == []


def test_who_is_forgotten_does_not_expire_until_it_is_heard_again() -> None:
    liveness = Liveness(1_000)
    liveness.heard(1, 0)
    liveness.forget(1)
    liveness.forget(2)
    assert liveness.expired(9_000) == []
    liveness.heard(1, 9_000)
    assert liveness.expired(10_000) == [1]


def test_a_new_controller_gives_everybody_a_whole_timeout() -> None:
    liveness = Liveness(1_000)
    liveness.heard(9, 0)
    liveness.started([1, 2], 5_000)
    assert liveness.expired(5_999) == []
    assert liveness.expired(6_000) == [1, 2]


def test_a_lease_counts_once_the_replicas_know_what_the_controller_knew() -> None:
    grants = Grants()
    grants.granted(version=7, until_ms=1_000)
    assert grants.until_ms == 0
    grants.told(6)
    assert grants.until_ms == 0
    grants.told(7)
    assert grants.until_ms == 1_000
    grants.granted(version=7, until_ms=1_400)
    assert grants.until_ms == 1_400
    grants.granted(version=9, until_ms=1_800)
    assert grants.until_ms == 1_400
    grants.told(12)
    assert grants.until_ms == 1_800
    grants.told(8)
    assert grants.until_ms == 1_800


def test_a_life_that_is_over_leaves_no_lease() -> None:
    grants = Grants()
    grants.granted(version=1, until_ms=1_000)
    grants.granted(version=3, until_ms=1_400)
    grants.told(1)
    grants.end()
    assert grants.until_ms == 0
    grants.told(3)
    assert grants.until_ms == 0
