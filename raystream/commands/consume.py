"""raystream consume TOPIC"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raystream.commands import arguments, sinks
from raystream.commands.shell import Shell, count_of
from raystream.errors import PlacementFailed
from raystream.types import Position, TopicDescription

if TYPE_CHECKING:
    import pyarrow as pa

    from raystream.client.consumer import Consumer
    from raystream.client.delivered import Batch
    from raystream.cluster import Cluster

_POLL_S = 0.2
_ASSIGNMENT_WAIT_S = 15.0
_PART_RECORDS = 1 << 18


def add(commands: Any, options: ArgumentParser) -> None:
    parser = commands.add_parser(
        "consume",
        parents=[options],
        help="read a topic as JSON lines, CSV, a table or Parquet",
        description="Reads what the topic holds and ends, or goes on with --follow. With --group it reads as a member "
        "of that group and commits what it has written out.",
    )
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument("--group", metavar="G", help="read as a member of this group, from its positions on")
    parser.add_argument(
        "--start", type=arguments.position, metavar="POSITION", help=f"{arguments.POSITION_HELP}; default: earliest"
    )
    parser.add_argument("--tail", type=arguments.count, metavar="N", help="only the last N records")
    parser.add_argument("--max", type=arguments.count, metavar="N", help="end after N records")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "--isolation",
        choices=("read_committed", "read_uncommitted"),
        default="read_committed",
        help="whether records of open and aborted transactions are left out; default: read_committed",
    )
    parser.add_argument("--format", choices=sinks.FORMATS, help="default: by -o's name; table on a terminal, else json")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(shell: Shell) -> int:
    args = shell.args
    if args.group is not None and not args.group.strip():
        args.usage_error("argument --group: a group has a name; leave the option out to read without one")
    if args.tail and args.group:
        args.usage_error("--tail reads without a group: a group goes on from its positions")
    if args.tail and args.start is not None:
        args.usage_error("--tail and --start both say where to begin: give one")
    kind = sinks.format_for(shell)
    if args.follow and kind == "table":
        args.usage_error("a table has an end, --follow has none: use --format json or csv")
    written = 0
    with shell.connect() as cluster:
        topic = cluster.describe_topic(args.topic)
        with sinks.opened(shell, kind, topic.name) as sink, shell.progress("records") as progress:
            task = progress.add_task(topic.name, total=args.max)
            for rows in _rows(shell, cluster, topic):
                sink.write(rows)
                if args.follow:
                    sink.flush()
                written += rows.num_rows
                progress.update(task, completed=written)
    if args.output not in (None, "-"):
        shell.note(f"{count_of(written, 'record')} into {args.output}")
    return 0


def _rows(shell: Shell, cluster: Cluster, topic: TopicDescription) -> Iterator[pa.Table]:
    """The topic's rows, at most `--max`."""
    if shell.args.group:
        return _of_member(shell, cluster, topic)
    return _limited(_alone(shell, cluster, topic), shell.args.max)


def _limited(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for rows in tables:
        if left is not None and rows.num_rows >= left:
            yield rows.slice(0, left)
            return
        left = None if left is None else left - rows.num_rows
        yield rows


def _start(shell: Shell) -> Position:
    start: Position | None = shell.args.start
    return "earliest" if start is None else start


def _alone(shell: Shell, cluster: Cluster, topic: TopicDescription) -> Iterator[pa.Table]:
    """What the topic holds now, by partition and offset, a part at a time; then what comes, with `--follow`."""
    args = shell.args
    if args.tail:
        held = cluster.read(topic.name, isolation=args.isolation).ranges()
        tails = {partition: max(offsets.start, offsets.stop - args.tail) for partition, offsets in held.items()}
        view = cluster.read(topic.name, start=tails, order="time", isolation=args.isolation)
        rows = view.to_arrow()
        yield rows.slice(max(rows.num_rows - args.tail, 0))
    else:
        view = cluster.read(topic.name, start=_start(shell), isolation=args.isolation)
        ranges = view.ranges()
        none = {partition: found.start for partition, found in ranges.items()}
        for partition, found in ranges.items():
            for first in range(found.start, found.stop, _PART_RECORDS):
                end = min(first + _PART_RECORDS, found.stop)
                begins, ends = none | {partition: first}, none | {partition: end}
                yield cluster.read(topic.name, start=begins, end=ends, isolation=args.isolation).to_arrow()
    if args.follow:
        with cluster.consumer(topic.name, None, view.offsets(), isolation=args.isolation) as consumer:
            for batch in consumer.batches():
                yield batch.to_arrow()


def _of_member(shell: Shell, cluster: Cluster, topic: TopicDescription) -> Iterator[pa.Table]:
    """What the group has not read yet. A table counts as processed once the next is asked for, or at the end."""
    args = shell.args
    ends = cluster.read(topic.name, isolation=args.isolation).offsets()
    with cluster.consumer(topic.name, args.group, _start(shell), isolation=args.isolation) as consumer:
        left = args.max
        for batch in _batches(shell, consumer, topic, ends):
            rows = batch.to_arrow()
            if left is not None and rows.num_rows >= left:
                yield rows.slice(0, left)
                # The rest stays for the group's next read.
                consumer.seek(topic.name, batch.partition, batch.offsets.start + left)
                consumer.commit()
                return
            left = None if left is None else left - rows.num_rows
            yield rows


def _batches(shell: Shell, consumer: Consumer, topic: TopicDescription, ends: Mapping[int, int]) -> Iterator[Batch]:
    """Batches up to where the topic ended when the command began, or without end with `--follow`."""
    waited_from = time.monotonic()
    while True:
        positions: dict[int, int] = consumer.position().get(topic.name, {})
        if positions:
            if not shell.args.follow and all(position >= ends[p] for p, position in positions.items()):
                return
            waited_from = time.monotonic()
        elif not shell.args.follow and time.monotonic() - waited_from > _ASSIGNMENT_WAIT_S:
            raise PlacementFailed(
                f"group {shell.args.group!r} has given this member no partition of {topic.name!r} yet: other members "
                "hold them, or the group coordinator does not answer; --follow waits"
            )
        batch = consumer.poll(_POLL_S)
        if batch is not None:
            yield batch
