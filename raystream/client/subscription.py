"""Which topics a consumer reads: those it names, or those whose names match a pattern, whenever they come up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raystream.client.routing import Routing
from raystream.errors import InvalidArgument

_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class Subscription:
    """The topics by name, or the pattern their names match."""

    topics: tuple[str, ...] = ()
    pattern: str | None = None

    @classmethod
    def of(cls, topics: str | Sequence[str] | re.Pattern[str]) -> Subscription:
        """What a user gives. Raises InvalidArgument."""
        if isinstance(topics, re.Pattern):
            return cls(pattern=topics.pattern)
        if not isinstance(topics, Iterable):
            raise InvalidArgument(f"topics must be a name, several, or a compiled pattern, not {topics!r}")
        given: tuple[Any, ...] = (topics,) if isinstance(topics, str) else tuple(topics)
        if not given:
            raise InvalidArgument("a consumer needs a topic: give one, a list, or a compiled pattern")
        for name in given:
            if not isinstance(name, str) or not _TOPIC_NAME.fullmatch(name):
                raise InvalidArgument(f"{name!r} is no topic name; for a pattern give re.compile({name!r})")
        return cls(topics=tuple(dict.fromkeys(given)))

    async def present(self, routing: Routing) -> list[str]:
        """The names, or those of the topics there are now that match. Raises RequestTimeout."""
        if self.pattern is None:
            return list(self.topics)
        matches = re.compile(self.pattern).fullmatch
        reply = await routing.metadata()
        return [topic.name for topic in reply.topics or () if matches(topic.name)]

    def __str__(self) -> str:
        return f"topics matching {self.pattern!r}" if self.pattern is not None else ", ".join(self.topics)
