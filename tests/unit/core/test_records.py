"""State records as key and value, and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core.group_records import GroupRecord, MemberRecord, OffsetRecord, ProducerIdsRecord
from raystream.core.metadata import BrokerRecord, ClusterRecord, PartitionRecord, TopicRecord
from raystream.core.records import Record, from_pair, removed, to_pair
from raystream.errors import CorruptBatch, NewerFormat

NAMES = st.text(max_size=20)
COUNTS = st.integers(-1, 2**63 - 1)
HELD = st.lists(st.tuples(NAMES, COUNTS, COUNTS), max_size=4).map(tuple)
BROKERS = st.lists(COUNTS, max_size=3).map(tuple)
RECORDS = st.one_of(
    st.builds(ClusterRecord, NAMES),
    st.builds(BrokerRecord, COUNTS, COUNTS),
    st.builds(
        TopicRecord,
        NAMES,
        NAMES,
        st.booleans(),
        st.lists(NAMES, max_size=2).map(tuple),
        st.none() | NAMES,
        st.none() | NAMES,
        st.dictionaries(NAMES, COUNTS | NAMES | st.none() | st.booleans(), max_size=3),
        COUNTS,
    ),
    st.builds(PartitionRecord, NAMES, COUNTS, BROKERS, BROKERS, COUNTS, COUNTS, COUNTS),
    st.builds(GroupRecord, NAMES, COUNTS),
    st.builds(
        MemberRecord,
        NAMES,
        NAMES,
        NAMES,
        st.lists(NAMES, max_size=3).map(tuple),
        st.none() | NAMES,
        COUNTS,
        COUNTS,
        COUNTS,
        COUNTS,
        HELD,
        HELD,
    ),
    st.builds(OffsetRecord, NAMES, NAMES, COUNTS, COUNTS, NAMES, NAMES),
    st.builds(ProducerIdsRecord, COUNTS),
)


@settings(deadline=None)
@given(RECORDS)
def test_every_record_and_its_tombstone_come_back(record: Record) -> None:
    key, value = to_pair(record)
    assert from_pair(key, value) == record
    assert to_pair(removed(record)) == (key, None)
    assert from_pair(key, None) == removed(record)


@settings(deadline=None)
@given(RECORDS, st.data())
def test_damage_is_a_typed_error_or_another_record_never_something_else(record: Record, data: st.DataObject) -> None:
    pair = [part or b"" for part in to_pair(record)]
    which = data.draw(st.integers(0, 1))
    at = data.draw(st.integers(0, len(pair[which])))
    pair[which] = pair[which][:at] + data.draw(st.binary(max_size=2)) + pair[which][at + 1 :]
    try:
        found = from_pair(*pair)
    except (CorruptBatch, NewerFormat):
        return
    assert isinstance(found, Record)


def test_the_bytes_are_compact_and_say_kind_and_version() -> None:
    assert to_pair(OffsetRecord("g", "t", 3, 17)) == (
        b'{"t":"offset","group":"g","topic":"t","partition":3}',
        b'{"v":1,"offset":17,"metadata":"","topic_id":""}',
    )
    assert to_pair(ClusterRecord("c"))[0] == b'{"t":"cluster"}'


def test_lone_surrogates_survive() -> None:
    record = OffsetRecord("g", "t", 0, 1, "\ud800")
    assert from_pair(*to_pair(record)) == record


def test_fields_that_are_missing_get_their_default_and_unknown_ones_are_left_out() -> None:
    key, _ = to_pair(OffsetRecord("g", "t", 3, 17))
    assert from_pair(key, b'{"v":1,"offset":17,"added_later":[1]}') == OffsetRecord("g", "t", 3, 17)


def test_what_a_newer_release_wrote_is_refused() -> None:
    with pytest.raises(NewerFormat, match=r"'queue'.*upgrade"):
        from_pair(b'{"t":"queue","name":"q"}', b'{"v":1}')
    with pytest.raises(NewerFormat, match="'queue'"):
        from_pair(b'{"t":"queue","name":"q"}', None)
    key, value = to_pair(GroupRecord("g", 3))
    newer = json.dumps({**json.loads(value or b""), "v": 2}).encode()
    with pytest.raises(NewerFormat, match="version 2"):
        from_pair(key, newer)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"", b"{}"),
        (b"{", b"{}"),
        (b"\xff", b"{}"),
        (b"[]", b"{}"),
        (b"{}", b"{}"),
        (b'{"t":["group"],"group":"g"}', b'{"v":1,"epoch":1}'),
        (b'{"t":"group"}', b'{"v":1,"epoch":1}'),
        (b'{"t":"group"}', None),
        (b'{"t":"group","group":"g","more":1}', b'{"v":1,"epoch":1}'),
        (b'{"t":"group","group":"g"}', b""),
        (b'{"t":"group","group":"g"}', b"{"),
        (b'{"t":"group","group":"g"}', b"3"),
        (b'{"t":"group","group":"g"}', b'{"epoch":1}'),
        (b'{"t":"group","group":"g"}', b'{"v":"1","epoch":1}'),
        (b'{"t":"group","group":"g"}', b'{"v":1}'),
    ],
)
def test_damage_is_named(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(CorruptBatch, match="state record"):
        from_pair(key, value)
