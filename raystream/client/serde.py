"""Values, keys and headers on their way in: from what users hand over to the bytes that a raw topic stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from raystream.errors import InvalidRecord, RaystreamError

Serializer = Callable[[Any], bytes | None]
HeaderPairs = list[tuple[str, bytes | None]]

_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def value_bytes(value: Any) -> bytes | None:
    """A value as stored: bytes as they are, str as UTF-8, dict and list as JSON, None as a tombstone.

    Raises InvalidRecord for anything else, with the remedy.
    """
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        return _utf8(value, "value")
    if isinstance(value, (dict, list)):
        try:
            return _utf8(_to_json(value), "value")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRecord(
                f"a value of type {type(value).__name__} cannot be JSON: {error}; convert what is inside, or give the "
                "producer a value_serializer"
            ) from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise InvalidRecord(
        f"a value of type {type(value).__name__} cannot be sent: give bytes, str, dict, list or None, or give the "
        "producer a value_serializer"
    )


def key_bytes(key: Any) -> bytes | None:
    """A key as stored: bytes as they are, str as UTF-8. Raises InvalidRecord for anything else, with the remedy."""
    if key is None or type(key) is bytes:
        return key
    if isinstance(key, str):
        return _utf8(key, "key")
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    raise InvalidRecord(
        f"a key of type {type(key).__name__} cannot be sent: give bytes or str (str(key), for one), or give the "
        "producer a key_serializer"
    )


def serialized(value: Any, serializer: Serializer, what: str) -> bytes | None:
    """What the user's serializer makes of a value or key. Raises InvalidRecord where that is neither bytes nor None."""
    try:
        data = serializer(value)
    except RaystreamError:
        raise
    except Exception as error:
        raise InvalidRecord(
            f"the {what}_serializer raised {type(error).__name__} on {shown(value)}: {error}"
        ) from error
    if data is None or type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise InvalidRecord(f"the {what}_serializer returned {type(data).__name__}: it must return bytes or None")


def shown(value: Any) -> str:
    """A value in an error's sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def header_pairs(headers: Any) -> HeaderPairs | None:
    """Headers as stored: name and bytes, in order, a name as often as it was given. str values become UTF-8.

    Takes a mapping or a sequence of pairs. Raises InvalidRecord for anything else.
    """
    if headers is None:
        return None
    if isinstance(headers, (str, bytes)) or not isinstance(headers, (Mapping, Sequence)):
        raise _bad_headers(headers)
    pairs: HeaderPairs = []
    for pair in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise _bad_headers(headers)
        name, value = pair
        if not isinstance(name, str):
            raise InvalidRecord(f"a header's name must be str, not {type(name).__name__}")
        _utf8(name, "header name")
        pairs.append((name, _header_value(name, value)))
    return pairs or None


def _header_value(name: str, value: Any) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        return _utf8(value, f"header {name!r}")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise InvalidRecord(f"header {name!r} has a value of type {type(value).__name__}: give bytes, str or None")


def _bad_headers(headers: Any) -> InvalidRecord:
    return InvalidRecord(f"headers must be a dict or a list of (name, value) pairs, not {shown(headers)}")


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(f"the {what} is no valid Unicode text: {error}") from None
