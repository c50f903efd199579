"""Quotas: what is decided, and how long a client waits that has moved too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.core import quotas
from raystream.core.metadata import MetadataImage, QuotaRecord
from raystream.core.records import Removed, from_pair, to_pair
from raystream.errors import InvalidArgument
from raystream.messages import ClientQuota
from tests.unit.core.controller_house import House


def test_a_quota_is_set_changed_and_removed_and_outlives_a_snapshot() -> None:
    house = House(brokers=1)
    house.commit(house.controller.set_quota(ClientQuota(client_id="etl", produce_bytes_per_s=1000)))
    assert house.image.quotas == {"etl": QuotaRecord("etl", 1000, None)}
    assert house.controller.set_quota(ClientQuota(client_id="etl", produce_bytes_per_s=1000)) == []
    house.commit(house.controller.set_quota(ClientQuota(client_id="etl", fetch_bytes_per_s=5)))
    restored = MetadataImage()
    for record in house.image.snapshot():
        restored.replay(from_pair(*to_pair(record)))
    assert restored.quotas == {"etl": QuotaRecord("etl", None, 5)}
    assert house.controller.set_quota(ClientQuota(client_id="etl")) == [Removed("quota", ("etl",))]
    house.commit(house.controller.set_quota(ClientQuota(client_id="etl")))
    assert house.image.quotas == {}
    assert house.controller.set_quota(ClientQuota(client_id="etl")) == []


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (ClientQuota(client_id="x" * 250, produce_bytes_per_s=1), "client_id"),
        (ClientQuota(client_id=7, produce_bytes_per_s=1), "client_id"),  # type: ignore[arg-type]
        (ClientQuota(client_id="a", produce_bytes_per_s=0), "produce_bytes_per_s=0: give 1 or more"),
        (ClientQuota(client_id="a", fetch_bytes_per_s=-1), "fetch_bytes_per_s=-1: give 1 or more"),
        (ClientQuota(client_id="a", fetch_bytes_per_s=1.5), "is not a whole number"),  # type: ignore[arg-type]
    ],
)
def test_bad_quotas_are_refused_with_a_sentence(wanted: ClientQuota, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        quotas.decide({}, wanted)


def test_there_are_only_so_many() -> None:
    known = {str(n): QuotaRecord(str(n), 1, None) for n in range(quotas.MAX_QUOTAS)}
    with pytest.raises(InvalidArgument, match="quotas already"):
        quotas.decide(known, ClientQuota(client_id="one more", produce_bytes_per_s=1))
    assert quotas.decide(known, ClientQuota(client_id="7", produce_bytes_per_s=2))


def test_a_clients_own_quota_goes_before_the_default() -> None:
    default, own = ClientQuota(client_id="", produce_bytes_per_s=1), ClientQuota(client_id="a", produce_bytes_per_s=2)
    assert quotas.applying((default, own), "a") == own
    assert quotas.applying((default, own), "b") == default
    assert quotas.applying((own,), "b") is None


def test_a_second_is_free_and_the_rest_is_waited_for() -> None:
    now_ms, rate = 50_000.0, 1000
    paid = quotas.charged(0.0, now_ms, 1000, rate)  # an idle client has a second's credit, and no more
    assert quotas.throttle_ms(paid, now_ms) == 0
    paid = quotas.charged(paid, now_ms, 500, rate)
    assert quotas.throttle_ms(paid, now_ms) == 500
    assert quotas.throttle_ms(paid, now_ms + 500) == 0
    assert quotas.throttle_ms(quotas.charged(paid, now_ms, 10**9, rate), now_ms) == quotas.MAX_THROTTLE_MS


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(1, 10_000)), min_size=1, max_size=200), st.integers(1, 5000))
def test_whoever_waits_as_told_never_moves_more_than_the_rate_and_a_burst(
    moves: list[tuple[float, int]], rate: int
) -> None:
    begin_ms = now_ms = 1e6
    paid = 0.0
    moved = before = 0
    for idle_ms, size in moves:
        now_ms += idle_ms + max(paid - now_ms - idle_ms, 0.0)  # all of it, in as many waits as it takes
        assert before <= (now_ms - begin_ms + quotas.BURST_MS) * rate / 1000 + 1e-3 * before + 1
        paid = quotas.charged(paid, now_ms, size, rate)
        moved += size
        before = moved
