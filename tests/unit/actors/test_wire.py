"""Messages on a socket come out as they went in, and nothing else comes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream import messages as m
from raystream.actors import wire
from raystream.errors import CorruptBatch, FencedLeaderEpoch, OffsetOutOfRange, ProtocolMismatch, RaystreamError


def opened(frame: list[memoryview]) -> tuple[memoryview, memoryview]:
    """A frame as the other side reads it."""
    data = memoryview(b"".join(frame))
    text_bytes, buffer_bytes = wire.lengths(data[: wire.HEAD.size])
    rest = data[wire.HEAD.size :]
    assert len(rest) == text_bytes + buffer_bytes
    return rest[:text_bytes], rest[text_bytes:]


def test_a_call_with_a_payload() -> None:
    sent = m.AppendRequest(topic_id="ab" * 16, partition=3, leader_epoch=7, age_ms=12)
    method, arguments = wire.read_request(*opened(wire.request("append", sent, b"rows")))
    assert (method, arguments[0], bytes(arguments[1])) == ("append", sent, b"rows")


def test_a_call_without_one() -> None:
    sent = m.FetchRequest(topic_id="ab" * 16, partition=0, offset=2**62, end_offset=None, mapped=True)
    assert wire.read_request(*opened(wire.request("fetch", sent))) == ("fetch", [sent])


@given(chunks=st.lists(st.binary(max_size=50), max_size=4), spans=st.lists(st.text(max_size=9), max_size=3))
def test_a_reply_with_nested_messages_and_buffers(chunks: list[bytes], spans: list[str]) -> None:
    sent = m.FetchReply(
        spans=tuple(m.Span(path, 4096, 2**40, 1) for path in spans),
        chunks=tuple(chunks),
        schema_ids=tuple(range(len(chunks))),
        high_watermark=9,
        last_stable_offset=8,
        log_start_offset=0,
        leader_epoch=2,
        aborted=((1, 2, 3), (4, 5, 6)),
    )
    got = wire.read_answer(*opened(wire.answer(sent)))
    assert [bytes(chunk) for chunk in got.chunks] == chunks
    assert (got.spans, got.schema_ids, got.aborted) == (sent.spans, sent.schema_ids, sent.aborted)
    assert (got.high_watermark, got.last_stable_offset, got.protocol) == (9, 8, m.PROTOCOL)


def test_an_error_keeps_its_kind_sentence_and_details() -> None:
    with pytest.raises(OffsetOutOfRange, match="offset 5 lies outside") as caught:
        wire.read_answer(*opened(wire.failure(OffsetOutOfRange("offset 5 lies outside", offset=5, log_start_offset=9))))
    assert (caught.value.offset, caught.value.log_start_offset) == (5, 9)
    with pytest.raises(FencedLeaderEpoch):
        wire.read_answer(*opened(wire.failure(FencedLeaderEpoch("old"))))


def test_a_fault_of_the_program_arrives_as_our_root_error() -> None:
    with pytest.raises(RaystreamError, match="KeyError: 'x'") as caught:
        wire.read_answer(*opened(wire.failure(KeyError("x"))))
    assert type(caught.value) is RaystreamError


def test_fields_that_a_newer_release_adds_are_left_out() -> None:
    text = json.dumps(["ok", {"#": "OffsetReply", "offset": 4, "colour": "blue"}]).encode()
    assert wire.read_answer(text, memoryview(b"")) == m.OffsetReply(offset=4)


def test_a_class_that_a_newer_release_adds_is_left_out_where_its_field_is() -> None:
    text = json.dumps(["ok", {"#": "OffsetReply", "offset": 4, "quota": {"#": "Quota", "bytes": 7}}]).encode()
    assert wire.read_answer(text, memoryview(b"")) == m.OffsetReply(offset=4)
    for known in ({"#": "OffsetReply", "offset": {"#": "Quota"}}, {"#": "Quota"}):
        with pytest.raises(ProtocolMismatch, match="a Quota"):
            wire.read_answer(json.dumps(["ok", known]).encode(), memoryview(b""))


def test_only_classes_of_messages_are_made() -> None:
    text = json.dumps(["ok", {"#": "Popen", "args": "true"}]).encode()
    with pytest.raises(ProtocolMismatch):
        wire.read_answer(text, memoryview(b""))


def test_a_head_that_states_too_much_is_refused() -> None:
    with pytest.raises(CorruptBatch, match="a frame states"):
        wire.lengths(wire.HEAD.pack(wire.MAX_JSON_BYTES + 1, 0))
    with pytest.raises(CorruptBatch, match="a frame states"):
        wire.lengths(wire.HEAD.pack(1, wire.MAX_BUFFER_BYTES + 1))
