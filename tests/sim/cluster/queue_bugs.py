"""Known ways to lose or double a queue's records, each planted alone in the product: a world must notice every one.

python -m tests.sim.cluster.queue_bugs        prints by which seed each is caught, from 0 on
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from raystream import messages as m
from raystream.actors.offsets_log import OffsetsLog
from raystream.client import share_session
from raystream.client.share_fetching import ShareFetcher
from raystream.core.share_drafts import Draft
from raystream.core.share_groups import ShareGroups
from tests.sim.cluster.bugs import _not_written
from tests.sim.cluster.queues import run
from tests.sim.planted import Bug, caught, replaced, tell

AT_MOST: Final = 15


def _anybodys_word(
    self: ShareGroups, group: Any, member: Any, draft: Draft, partition: Any, said: Any, now_ms: float
) -> Iterator[tuple[int, int]]:
    first, stop, kind, _ = said
    if kind != m.RENEW:
        yield from draft.acknowledge(first, stop, kind)


def _of_whichever_acquisition(
    self: ShareGroups, group: Any, member: Any, draft: Draft, partition: Any, said: Any, now_ms: float
) -> Iterator[tuple[int, int]]:
    return _settle(self, group, member, draft, partition, (*said[:3], 0), now_ms)


async def _not_copied(*_: Any, **__: Any) -> None:
    pass


def _released_is_done_with(self: Draft, begin: int, end: int, state: int, deliveries: int, kind: str) -> None:
    _become(self, begin, end, state, deliveries, m.ACCEPT if kind == m.RELEASE and state == 0 else kind)


async def _nothing_there_is_a_gap(self: ShareFetcher, reading: Any, left_ms: float) -> None:
    before = reading.offset
    await _read(self, reading, left_ms)
    if reading.offset == before:
        reading.offset = reading.stop


_become, _read, _settle = Draft._become, ShareFetcher._read, ShareGroups._settle

BUGS: Final[Mapping[str, Bug]] = {
    "an acknowledgement is answered and not written": replaced(
        OffsetsLog, "append", _not_written, focus=("kill_coordinator",)
    ),
    "a late word counts though others have the record": replaced(
        ShareGroups, "_settle", _anybodys_word, focus=("pause_client",)
    ),
    "a late word counts for what was acquired anew": replaced(ShareGroups, "_settle", _of_whichever_acquisition),
    "a dead letter is archived before it is written": replaced(share_session, "bury", _not_copied),
    "what is released is done with": replaced(Draft, "_become", _released_is_done_with),
    "what was not there yet is taken for a gap": replaced(ShareFetcher, "_read", _nothing_there_is_a_gap),
}
"""By what is wrong."""


def line(name: str) -> str:
    """How many seeds it takes, and what is said then."""
    return caught(run, BUGS, name, at_most=AT_MOST)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.queue_bugs", *sys.argv[1:]])
    tell(line, sys.argv[1:] or BUGS)
