"""Transactions whose user has asked for their commit, on their way to it: several of them may become one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from raystream import messages as m
from raystream.errors import InvalidTransactionState, RaystreamError


@dataclass(slots=True, eq=False)
class Ended:
    """A transaction whose user has asked for its commit. `committed` is called on the loop."""

    number: int
    offsets: tuple[m.CommitRequest, ...]
    committed: Callable[[], None]
    waited_for: bool = True
    outcome: asyncio.Future[None] = field(init=False)


def together(group: Iterable[Ended]) -> tuple[m.CommitRequest, ...]:
    """The positions of several transactions as those of one: of each partition the last."""
    merged: dict[tuple[str, str, int], m.CommitRequest] = {}
    for request in (request for one in group for request in one.offsets):
        who = request.group, request.member_id, request.member_epoch
        before = merged.get(who, request).offsets
        offsets = {(offset.topic, offset.partition): offset for offset in (*before, *request.offsets)}
        merged[who] = replace(request, offsets=tuple(offsets.values()))
    return tuple(merged.values())


def commit_all(ended: Iterable[Ended]) -> None:
    """They are committed: whoever waits is told."""
    for one in ended:
        one.committed()
        if not one.outcome.done():
            one.outcome.set_result(None)


def fail_all(ended: Iterable[Ended], failure: RaystreamError) -> RaystreamError | None:
    """They are not: whoever waits is told. The failure, where one of them had nobody who waits."""
    unseen: RaystreamError | None = None
    for one in ended:
        if not one.waited_for or one.outcome.cancelled():
            unseen = failure
        if not one.outcome.done():
            one.outcome.set_exception(failure)
    return unseen


def aborted() -> InvalidTransactionState:
    return InvalidTransactionState("the transaction was aborted")
