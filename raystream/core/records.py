"""State changes as records: what is decided is written down as these, and state is what replaying them gives.

A record upserts one thing, named by its identity; a tombstone removes it. On the log a record is a (key, value) pair of
compact JSON: the key holds kind and identity, so that a compacted log keeps the last state of each thing. Fields are
only ever added, with defaults; an unknown kind is from a newer release and is refused.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from raystream.errors import CorruptBatch, NewerFormat

Pair = tuple[bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records. `KIND` names it on the log, `IDENTITY` the fields that say which thing it is about."""

    KIND: ClassVar[str]
    IDENTITY: ClassVar[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Removed:
    """A tombstone: the thing of that kind and identity is gone."""

    kind: str
    identity: tuple[Any, ...]


R = TypeVar("R", bound=Record)
_kinds: dict[str, type[Record]] = {}


def kind(cls: type[R]) -> type[R]:
    """Makes a record class known to `from_pair`."""
    _kinds[cls.KIND] = cls
    return cls


def identity(record: Record) -> tuple[Any, ...]:
    """The values of the record's identity fields."""
    return tuple(getattr(record, name) for name in record.IDENTITY)


def removed(record: Record) -> Removed:
    """The tombstone of what `record` is about."""
    return Removed(record.KIND, identity(record))


def to_pair(record: Record | Removed) -> Pair:
    """The record as key and value; a tombstone has no value."""
    if isinstance(record, Removed):
        return _json([record.kind, *record.identity]), None
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name not in record.IDENTITY}
    return _json([record.KIND, *identity(record)]), _json(fields)


def from_pair(key: bytes | None, value: bytes | None) -> Record | Removed:
    """The record that `to_pair` wrote. Raises NewerFormat for a kind this release does not know, CorruptBatch."""
    try:
        name, *names = json.loads(key or b"null")
        fields = None if value is None else json.loads(value)
    except (ValueError, TypeError) as error:
        raise CorruptBatch(f"a state record cannot be read: {error}") from None
    cls = _kinds.get(name)
    if cls is None:
        raise NewerFormat(f"the log holds records of kind {name!r}, which a newer raystream wrote: upgrade this one")
    if fields is None:
        return Removed(name, tuple(names))
    known = {f.name for f in dataclasses.fields(cls)}
    given = {k: _frozen(v) for k, v in fields.items() if k in known}
    return cls(**dict(zip(cls.IDENTITY, names, strict=True)), **given)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
