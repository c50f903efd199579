"""How a connection opens consumers: alone, as members of a group, or as workers on a queue."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, overload

from raystream.client.consumer import Consumer, OnOffsetsLost
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import Routing
from raystream.client.share_consumer import ShareConsumer
from raystream.config import ConsumerConfig, ShareConfig, build
from raystream.errors import InvalidArgument
from raystream.types import LATEST, Position


class Consuming:
    """The part of `Cluster` that opens consumers, and remembers them: one that nobody holds leaves by itself."""

    _consumers: weakref.WeakSet[Consumer | ShareConsumer]

    @property
    def _loop(self) -> BackgroundLoop:
        raise NotImplementedError

    @property
    def _routing(self) -> Routing:
        raise NotImplementedError

    def _send_dead_letter(
        self, topic: str, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        raise NotImplementedError

    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Position = LATEST,
        *,
        share: None = None,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        client_id: str = "",
        group_instance_id: str | None = None,
        on_offsets_lost: OnOffsetsLost = "raise",
        **settings: Any,
    ) -> Consumer: ...

    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: None = None,
        start: Position = LATEST,
        *,
        share: str,
        dead_letter: str | None = None,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        client_id: str = "",
        **settings: Any,
    ) -> ShareConsumer: ...

    def consumer(
        self,
        topics: Any,
        group: str | None = None,
        start: Position = LATEST,
        *,
        share: str | None = None,
        dead_letter: str | None = None,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        client_id: str = "",
        group_instance_id: str | None = None,
        on_offsets_lost: OnOffsetsLost = "raise",
        **settings: Any,
    ) -> Consumer | ShareConsumer:
        """A consumer of one topic, several, or those a pattern matches; with `group=None` it reads alone.

        `start` counts where the group has no position. `group_instance_id` makes it a static member, whose restart
        within the session timeout moves no partition. Records that retention took away before they were read are
        reported as `on_offsets_lost` says: OffsetsLost is raised, once. `settings` are those of
        `raystream.config.ConsumerConfig`.

        With `share="workers"` it is one of many workers on a queue: see `ShareConsumer`, and
        `raystream.config.ShareConfig` for its settings. `dead_letter` names a raw topic for records that cannot be
        handled.
        """
        how: dict[str, Any] = {
            "topics": topics,
            "start": start,
            "key_deserializer": key_deserializer,
            "value_deserializer": value_deserializer,
            "client_id": client_id,
        }
        consumer: Consumer | ShareConsumer
        if share is not None:
            if group is not None or group_instance_id is not None:
                raise InvalidArgument("a consumer is a member of a group= or of a share=, not of both")
            config = build(ShareConfig, settings)
            consumer = ShareConsumer(self._routing, self._loop, config, share=share, dead_letter=dead_letter, **how)
        else:
            if dead_letter is not None:
                raise InvalidArgument("dead_letter= belongs to share=; consumer.run(dead_letter=…) is for groups")
            consumer = Consumer(
                self._routing,
                self._loop,
                build(ConsumerConfig, settings),
                group=group,
                group_instance_id=group_instance_id,
                on_offsets_lost=on_offsets_lost,
                produce=self._send_dead_letter,
                **how,
            )
        self._consumers.add(consumer)
        return consumer
