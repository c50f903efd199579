"""Which names a topic may have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from raystream.errors import InvalidTopicName

MAX_NAME_CHARACTERS: Final = 249
_ALLOWED: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
INTERNAL_PREFIX: Final = "__"


def is_internal(name: str) -> bool:
    """Whether raystream itself owns topics of that name."""
    return name.startswith(INTERNAL_PREFIX)


def check(name: object, existing: Iterable[str] = ()) -> None:
    """Raises InvalidTopicName unless a user may create a topic of that name beside the existing ones."""
    if not isinstance(name, str):
        raise InvalidTopicName(f"a topic name is a str, not {type(name).__name__}")
    if not name:
        raise InvalidTopicName("a topic name has at least one character")
    if name in (".", ".."):
        raise InvalidTopicName(f"{name!r} cannot name a topic")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidTopicName(f"the topic name has {len(name)} characters; {MAX_NAME_CHARACTERS} are allowed")
    if not _ALLOWED.fullmatch(name):
        raise InvalidTopicName(f"topic name {name!r}: only ASCII letters, digits, '.', '_' and '-' are allowed")
    if is_internal(name):
        raise InvalidTopicName(f"topic name {name!r}: names that begin with '__' are raystream's own")
    for other in existing:
        if other != name and _metric_name(other) == _metric_name(name):
            raise InvalidTopicName(
                f"topic name {name!r} differs from the existing {other!r} only in '.' and '_', which metrics cannot "
                "tell apart: choose another"
            )


def _metric_name(name: str) -> str:
    return name.replace(".", "_")
