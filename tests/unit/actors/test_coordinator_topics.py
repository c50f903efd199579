"""How a coordinator learns of the topics, without which it takes no member."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import Any

from raystream import messages as m
from raystream.actors.coordinator import WATCH_WAIT_MS, CoordinatorActor
from raystream.client.routing import CALL_TIMEOUT_MS, METADATA_TIMEOUT_MS
from raystream.errors import RequestTimeout


class Controller:
    """Loses the first question, answers the second, and then has no news."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []
        """How long each question may wait for news, and how long its answer is waited for; milliseconds."""

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
        self.asked.append((request.max_wait_ms, timeout_ms))
        if len(self.asked) == 1:
            raise RequestTimeout("lost")
        if len(self.asked) > 2:
            await asyncio.Event().wait()
        return m.MetadataReply(cluster_id="c", version=1, brokers=(), topics=())


def test_a_question_that_is_lost_is_asked_again_soon() -> None:
    controller, known = Controller(), threading.Event()

    async def call_controller(call: Any) -> Any:
        return await call(controller, CALL_TIMEOUT_MS)

    coordinator: Any = SimpleNamespace(
        _routing=SimpleNamespace(call_controller=call_controller),
        _topics_known=known,
        _writer=SimpleNamespace(submit=lambda work: None),
        _know_topics=None,
    )

    async def watch() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(CoordinatorActor._watch_topics(coordinator), 1.0)

    asyncio.run(watch())
    assert known.is_set()
    first, again, steady = controller.asked
    assert first == again == (0, METADATA_TIMEOUT_MS), "nothing is known yet: the answer is wanted at once"
    assert steady == (WATCH_WAIT_MS, WATCH_WAIT_MS + METADATA_TIMEOUT_MS)
    assert steady[1] < CALL_TIMEOUT_MS
