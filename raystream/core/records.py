"""State changes as records: what is decided is written down as these, and state is what replaying them gives.

A record upserts one thing, named by its identity; a tombstone removes it. On the log a record is a (key, value) pair of
compact JSON, so that a compacted log keeps the last state of each thing:

    key    {"t": kind, ...identity}
    value  {"v": version, ...the other fields}, or nothing: a tombstone

Fields are only ever added, with defaults, and an older release leaves out those that it does not know. A change that it
must not overlook raises the kind's VERSION; an unknown kind or a higher version is from a newer release and is refused.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from raystream.errors import CorruptBatch, NewerFormat

Pair = tuple[bytes | None, bytes | None]
KIND_KEY: Final = "t"
VERSION_KEY: Final = "v"


@dataclass(frozen=True, slots=True)
class Record:
    """Parent of all records. `KIND` names it on the log, `IDENTITY` the fields that say which thing it is about."""

    KIND: ClassVar[str]
    IDENTITY: ClassVar[tuple[str, ...]]
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Removed:
    """A tombstone: the thing of that kind and identity is gone."""

    kind: str
    identity: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What must be on the log, and replayed, before anybody learns of `reply`."""

    records: tuple[Record | Removed, ...]
    reply: Any = None


R = TypeVar("R", bound=Record)
_kinds: dict[str, type[Record]] = {}


def kind(cls: type[R]) -> type[R]:
    """Makes a record class known to `from_pair`."""
    assert cls.KIND not in _kinds, cls.KIND
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
        return _key(_kinds[record.kind], record.identity), None
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name not in record.IDENTITY}
    return _key(type(record), identity(record)), _json({VERSION_KEY: record.VERSION, **values})


def from_pair(key: bytes | None, value: bytes | None) -> Record | Removed:
    """The record that `to_pair` wrote. Raises NewerFormat for what this release does not know, CorruptBatch."""
    named = _object(key)
    name = named.pop(KIND_KEY, None)
    if not isinstance(name, str):
        raise CorruptBatch("a state record does not say of what kind it is")
    cls = _kinds.get(name)
    if cls is None:
        raise NewerFormat(f"the log holds records of kind {name!r}, which a newer raystream wrote: upgrade this one")
    if named.keys() != set(cls.IDENTITY):
        raise CorruptBatch(f"a state record of kind {name!r} does not say what it is about")
    if value is None:
        return Removed(name, tuple(_frozen(named[field]) for field in cls.IDENTITY))
    fields = _object(value)
    version = fields.pop(VERSION_KEY, None)
    if not isinstance(version, int):
        raise CorruptBatch(f"a state record of kind {name!r} carries no version")
    if version > cls.VERSION:
        raise NewerFormat(
            f"the log holds records of kind {name!r} in version {version}; this raystream reads up to {cls.VERSION}: "
            "upgrade it"
        )
    known = {f.name for f in dataclasses.fields(cls)}
    try:
        return cls(**{field: _frozen(v) for field, v in (named | fields).items() if field in known})
    except TypeError as error:
        raise CorruptBatch(f"a state record of kind {name!r} lacks a field: {error}") from None


def _key(cls: type[Record], names: tuple[Any, ...]) -> bytes:
    return _json({KIND_KEY: cls.KIND, **dict(zip(cls.IDENTITY, names, strict=True))})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()  # ASCII: any str survives, lone surrogates too


def _object(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"null")
    except ValueError as error:
        raise CorruptBatch(f"a state record cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CorruptBatch("a state record is not a JSON object")
    return found


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
