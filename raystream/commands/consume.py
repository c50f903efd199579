"""raystream consume TOPIC"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raystream.commands import arguments, sinks
from raystream.commands.shell import Shell, count_of
from raystream.errors import PlacementFailed
from raystream.types import TopicDescription

if TYPE_CHECKING:
    import pyarrow as pa

    from raystream.client.consumer import Consumer
    from raystream.cluster import Cluster

_POLL_S = 0.2
_ASSIGNMENT_WAIT_S = 15.0
_CHUNK_RECORDS = 1 << 18


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
        "--start", type=arguments.position, metavar="POSITION", help=f"default: earliest; {arguments.POSITION_HELP}"
    )
    parser.add_argument("--tail", type=arguments.count, metavar="N", help="only the last N of each partition's records")
    parser.add_argument("--max", type=arguments.count, metavar="N", help="end after N records")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--format", choices=sinks.FORMATS, help="default: by -o's name; table on a terminal, else json")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(shell: Shell) -> int:
    args = shell.args
    if args.tail and args.group:
        args.usage_error("--tail reads without a group: a group goes on from its positions")
    if args.tail and args.start is not None:
        args.usage_error("--tail and --start both say where to begin: give one")
    kind = sinks.format_for(shell)
    written = 0
    with shell.connect() as cluster:
        topic = cluster.describe_topic(args.topic)
        with sinks.opened(shell, kind, topic.name) as sink, shell.progress("records") as progress:
            task = progress.add_task(topic.name, total=args.max)
            try:
                for rows in _rows(shell, cluster, topic):
                    sink.write(rows)
                    if args.follow:
                        sink.flush()
                    written += rows.num_rows
                    progress.update(task, completed=written)
            except KeyboardInterrupt:
                if not args.follow:
                    raise
    if args.output not in (None, "-"):
        shell.note(f"{count_of(written, 'record')} into {args.output}")
    return 0


def _rows(shell: Shell, cluster: Cluster, topic: TopicDescription) -> Iterator[pa.Table]:
    """The topic's rows, at most `--max`; each table counts as processed once the next is asked for."""
    args = shell.args
    start = args.start if args.start is not None else "earliest"
    if args.tail:
        start = {p.partition: max(p.start_offset, p.end_offset - args.tail) for p in topic.partition_list}
    with cluster.consumer(topic.name, group=args.group, start=start) as consumer:
        left = args.max
        for batch in _batches(shell, consumer, topic):
            rows = batch.to_arrow()
            if left is not None and rows.num_rows >= left:
                # The rest stays for the group's next read.
                consumer.seek(topic.name, batch.partition, batch.offsets.start + left)
                yield rows.slice(0, left)
                return
            left = None if left is None else left - rows.num_rows
            yield rows


def _batches(shell: Shell, consumer: Consumer, topic: TopicDescription) -> Iterator[Any]:
    """Batches up to where the topic ended when the command began, or without end with `--follow`."""
    ends = {p.partition: p.end_offset for p in topic.partition_list}
    waited_from = time.monotonic()
    while True:
        positions: dict[int, int] = consumer.position().get(topic.name, {})
        if positions:
            if not shell.args.follow and all(position >= ends[p] for p, position in positions.items()):
                return
            waited_from = time.monotonic()
        elif not shell.args.follow and time.monotonic() - waited_from > _ASSIGNMENT_WAIT_S:
            raise PlacementFailed(
                f"other members of group {shell.args.group!r} hold every partition of {topic.name!r}: --follow waits"
            )
        batch = consumer.poll(_POLL_S)
        if batch is not None:
            yield batch
