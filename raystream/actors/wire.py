"""Messages as bytes on a socket between processes of one machine: JSON for the fields, buffers behind it as they are.

A frame is 12 bytes (u32: length of the JSON, u64: length of what follows it; little-endian), the JSON, the buffers.
Nothing that arrives is unpickled: a message is made from the fields of a class of `messages.py` or
`core/replication.py`, an error from one of `errors.py`. Fields that this release does not know are left out, as
`messages.py` promises.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from raystream import errors, messages
from raystream.batch import Bytes
from raystream.core import replication
from raystream.errors import CorruptBatch, ProtocolMismatch, RaystreamError

HEAD: Final = struct.Struct("<IQ")
MAX_JSON_BYTES: Final = 16 << 20
MAX_BUFFER_BYTES: Final = 1 << 30

_ANSWER: Final = "ok"
_ERROR: Final = "error"
_PLAIN: Final = (int, str, bool, float, type(None))
_SCALARS: Final = frozenset(_PLAIN)
"""Looked up by their class: most of what goes over a socket is one of these, and each is seen once."""
_FIELDS: Final = {
    kind.__name__: (kind, frozenset(field.name for field in dataclasses.fields(kind)))
    for kind in (*vars(messages).values(), *vars(replication).values())
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
_ERRORS: Final = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RaystreamError)
}
_to_json: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=str).encode


def request(method: str, message: Any, payload: Bytes | None = None) -> list[memoryview]:
    """A call as buffers to send; `payload` goes beside the message."""
    buffers: list[memoryview] = []
    beside = [] if payload is None else [_plain(payload, buffers)]
    return _frame([method, _plain(message, buffers), *beside], buffers)


def request_head(method: str, message: Any, payload_bytes: int) -> bytes:
    """The beginning of a call, which its payload follows. The message holds no buffers."""
    text = _to_json([method, _plain(message, []), {"@": [0, payload_bytes]}]).encode()
    return HEAD.pack(len(text), payload_bytes) + text


def answer(message: Any) -> list[memoryview]:
    """A reply as buffers to send."""
    buffers: list[memoryview] = []
    return _frame([_ANSWER, _plain(message, buffers)], buffers)


def failure(error: Exception) -> list[memoryview]:
    """An error of ours as itself, another one as RaystreamError with its text."""
    kind = type(error).__name__ if isinstance(error, RaystreamError) else RaystreamError.__name__
    text = str(error) if isinstance(error, RaystreamError) else f"{type(error).__name__}: {error}"
    return _frame([_ERROR, kind, text, dict(vars(error))], [])


def lengths(head: Bytes) -> tuple[int, int]:
    """How long the JSON is and what follows it. Raises CorruptBatch where no such frame is ever sent."""
    json_bytes, buffer_bytes = HEAD.unpack(head)
    if json_bytes > MAX_JSON_BYTES or buffer_bytes > MAX_BUFFER_BYTES:
        raise CorruptBatch(f"a frame states {json_bytes:,} and {buffer_bytes:,} bytes")
    return json_bytes, buffer_bytes


def read_request(text: Bytes, payload: memoryview) -> tuple[str, list[Any]]:
    """The method and its arguments, which point into `payload`."""
    method, *arguments = _read(text, payload)
    return method, [_tuples(argument) for argument in arguments]


def read_answer(text: Bytes, payload: memoryview) -> Any:
    """The reply's message, which points into `payload`. Raises the error that came instead."""
    kind, *rest = _read(text, payload)
    if kind == _ANSWER:
        return _tuples(rest[0])
    name, message, details = rest
    raise _ERRORS.get(name, RaystreamError)(message, **details)


def _frame(content: list[Any], buffers: list[memoryview]) -> list[memoryview]:
    text = _to_json(content).encode()
    head = HEAD.pack(len(text), sum(map(len, buffers)))
    return [memoryview(head + text), *buffers]


def _plain(value: Any, buffers: list[memoryview]) -> Any:
    if isinstance(value, tuple):
        return [item if type(item) in _SCALARS else _plain(item, buffers) for item in value]
    known = _FIELDS.get(type(value).__name__)
    if known is not None:
        fields: dict[str, Any] = {"#": type(value).__name__}
        for name in known[1]:
            field = getattr(value, name)
            fields[name] = field if type(field) in _SCALARS else _plain(field, buffers)
        return fields
    if isinstance(value, _PLAIN):
        return value
    view = memoryview(value).cast("B")
    start = sum(map(len, buffers))
    buffers.append(view)
    return {"@": [start, start + len(view)]}


def _read(text: Bytes, payload: memoryview) -> Sequence[Any]:
    content: Sequence[Any] = json.loads(bytes(text), object_hook=partial(_made, payload))
    return content


def _made(payload: memoryview, fields: dict[str, Any]) -> Any:
    if "@" in fields:
        start, stop = fields["@"]
        return payload[start:stop]
    name = fields.pop("#", None)
    if name is None:
        return fields
    if name not in _FIELDS:
        return _Unknown(name)
    kind, known = _FIELDS[name]
    return kind(
        **{key: value if type(value) in _SCALARS else _tuples(value) for key, value in fields.items() if key in known}
    )


class _Unknown:
    """A message of a class that a newer release has. In a field that is not known either, nobody looks at it."""

    def __init__(self, name: str) -> None:
        self.name = name


def _tuples(value: Any) -> Any:
    if isinstance(value, _Unknown):
        raise ProtocolMismatch(f"the other side sent a {value.name}, which this raystream does not know")
    if isinstance(value, list):
        return tuple([item if type(item) in _SCALARS else _tuples(item) for item in value])
    return value
