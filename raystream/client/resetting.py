"""Moving a group's positions: the plan, row by row, and carrying it out."""

from __future__ import annotations

from typing import Any

from raystream import messages as m
from raystream.client import positions
from raystream.client.routing import Routing
from raystream.errors import InvalidArgument, OffsetOutOfRange
from raystream.types import EARLIEST, LATEST, OffsetMove, Rows, TopicPartition


async def reset_offsets(
    routing: Routing, group: str, topic: str, to: Any, *, shift: int | None, dry_run: bool
) -> Rows[OffsetMove]:
    """See `Cluster.reset_offsets`."""
    if (to is None) == (shift is None):
        raise InvalidArgument("reset_offsets takes either to= (a position) or shift= (a number of records)")
    before = await _committed(routing, group, topic)
    after = await (_placed(routing, topic, to) if shift is None else _shifted(routing, topic, before, shift))
    if not dry_run and after:
        request = m.CommitRequest(
            group=group,
            offsets=tuple(m.CommittedOffset(at.topic, at.partition, offset) for at, offset in after.items()),
        )
        await routing.call_coordinator(lambda port, left: port.commit(request, timeout_ms=left))
    return Rows(OffsetMove(at.topic, at.partition, before.get(at), offset) for at, offset in sorted(after.items()))


async def _committed(routing: Routing, group: str, topic: str) -> positions.Offsets:
    request = m.GroupRequest(group=group)
    found = await routing.call_coordinator(lambda port, left: port.fetch_offsets(request, timeout_ms=left))
    return {TopicPartition(o.topic, o.partition): o.offset for o in found if o.topic == topic}


async def _placed(routing: Routing, topic: str, to: Any) -> positions.Offsets:
    place = positions.parse(to, [topic], now_ms=routing.clock.now_ms(), what="to")
    partitions = await positions.partitions_of(routing, topic)
    if place.offsets is not None:
        partitions = list(place.offsets)
    offsets = await positions.resolve(routing, place, partitions)
    ends = await positions.resolve(routing, positions.Place(word=LATEST), partitions)
    for at, offset in offsets.items():
        if offset > ends[at]:
            raise OffsetOutOfRange(f"{at} ends at offset {ends[at]:,}: a group cannot be moved to {offset:,}")
    return offsets


async def _shifted(routing: Routing, topic: str, before: positions.Offsets, shift: Any) -> positions.Offsets:
    """Each position that there is, moved within what the partition holds."""
    if isinstance(shift, bool) or not hasattr(shift, "__index__"):
        raise InvalidArgument(f"shift is a number of records, forwards or (below 0) back, not {shift!r}")
    there = set(await positions.partitions_of(routing, topic))
    moving = [at for at in before if at in there]
    begins = await positions.resolve(routing, positions.Place(word=EARLIEST), moving)
    ends = await positions.resolve(routing, positions.Place(word=LATEST), moving)
    return {at: min(max(before[at] + int(shift), begins[at]), ends[at]) for at in moving}
