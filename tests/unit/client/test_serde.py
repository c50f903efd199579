"""Values, keys and headers in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from raystream.client.serde import header_pairs, key_bytes, serialized, value_bytes
from raystream.errors import InvalidRecord


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (b"\x00\xff", b"\x00\xff"),
        ("Grüße", "Grüße".encode()),
        ("", b""),
        (None, None),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abc")[1:], b"bc"),
        ({"a": [1, None, True], "ü": 1.5}, '{"a":[1,null,true],"ü":1.5}'.encode()),
        ([], b"[]"),
    ],
)
def test_values(value: Any, stored: bytes | None) -> None:
    assert value_bytes(value) == stored


def test_json_comes_back() -> None:
    value = {"text": "ä\n\u2028", "nested": [{"x": None}], "big": 2**70}
    assert json.loads(value_bytes(value) or b"") == value


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (1, "int"),
        (1.5, "float"),
        ((1, 2), "tuple"),
        ({1, 2}, "set"),
        (object(), "object"),
        ({"a": np.int64(1)}, "int64"),
        ({"a": float("nan")}, "float"),
        ({"a": {1, 2}}, "set"),
        ("\ud800", "Unicode"),
    ],
)
def test_other_values_are_refused_with_a_remedy(value: Any, names: str) -> None:
    with pytest.raises(InvalidRecord, match=names) as raised:
        value_bytes(value)
    assert names == "Unicode" or "value_serializer" in str(raised.value)


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidRecord, match="cannot be JSON"):
        value_bytes(circle)


def test_keys() -> None:
    assert key_bytes("k") == b"k"
    assert key_bytes(b"k") == b"k"
    assert key_bytes(bytearray(b"k")) == b"k"
    assert key_bytes(None) is None
    for key in (1, 1.5, ["k"], {"k": 1}):
        with pytest.raises(InvalidRecord, match=r"str\(key\)"):
            key_bytes(key)


def test_a_serializer_must_return_bytes() -> None:
    assert serialized(5, lambda value: str(value).encode(), "value") == b"5"
    assert serialized(5, lambda _: None, "value") is None
    loose: Any = lambda _: bytearray(b"x")  # noqa: E731
    assert serialized(5, loose, "key") == b"x"
    with pytest.raises(InvalidRecord, match="the key_serializer returned str"):
        serialized(5, lambda _: "text", "key")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("headers", "stored"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"a": b"1", "b": "2", "c": None}, [("a", b"1"), ("b", b"2"), ("c", None)]),
        ([("a", b"1"), ("a", b"2")], [("a", b"1"), ("a", b"2")]),
        ([["a", "ü"]], [("a", "ü".encode())]),
        ((("a", bytearray(b"x")),), [("a", b"x")]),
    ],
)
def test_headers(headers: Any, stored: Any) -> None:
    assert header_pairs(headers) == stored


@pytest.mark.parametrize("headers", ["text", b"bytes", 5, ["ab"], [("a",)], [("a", 1)], {1: b"x"}, {"a": 1.5}, {"a"}])
def test_other_headers_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidRecord, match="header"):
        header_pairs(headers)
