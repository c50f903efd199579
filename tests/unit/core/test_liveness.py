"""Who is heard, on a clock made by hand."""

from __future__ import annotations

from raystream.core.liveness import Liveness


def test_a_broker_expires_when_its_timeout_is_over() -> None:
    liveness = Liveness(1_000)
    liveness.heard(2, 500)
    liveness.heard(1, 100)
    assert liveness.next_deadline_ms == 1_100
    assert liveness.expired(1_099) == []
    assert liveness.expired(1_100) == [1]
    assert liveness.expired(2_000) == [1, 2]
    liveness.heard(1, 1_900)
    assert liveness.expired(2_000) == [2]


def test_what_arrives_late_takes_nothing_back() -> None:
    liveness = Liveness(1_000)
    liveness.heard(1, 500)
    liveness.heard(1, 400)
    assert liveness.next_deadline_ms == 1_500


def test_who_is_forgotten_does_not_expire_until_it_is_heard_again() -> None:
    liveness = Liveness(1_000)
    liveness.heard(1, 0)
    liveness.forget(1)
    liveness.forget(2)
    assert (liveness.expired(9_000), liveness.next_deadline_ms) == ([], None)
    liveness.heard(1, 9_000)
    assert liveness.expired(10_000) == [1]


def test_a_new_controller_gives_everybody_a_whole_timeout() -> None:
    liveness = Liveness(1_000)
    liveness.heard(9, 0)
    liveness.started([1, 2], 5_000)
    assert liveness.expired(5_999) == []
    assert liveness.expired(6_000) == [1, 2]
