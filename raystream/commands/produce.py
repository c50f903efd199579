"""raystream produce TOPIC [FILE]"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystream.commands import arguments, sources
from raystream.commands.shell import Shell, count_of, size
from raystream.errors import InvalidArgument, InvalidRecord, TopicNotFound
from raystream.types import TopicDescription

if TYPE_CHECKING:
    from raystream.cluster import Cluster

_FRAMES_IN_FLIGHT = 8
_PROGRESS_EVERY = 1_000


def add(commands: Any, options: ArgumentParser) -> None:
    parser = commands.add_parser(
        "produce",
        parents=[options],
        help="write lines, CSV, JSON lines, Parquet or Arrow to a topic",
        description="Lines from stdin or a text file become the records of a raw topic; the rows of a CSV, JSON lines, "
        "Parquet or Arrow file become the rows of a typed one. A topic that is missing is created.",
    )
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: stdin, as -")
    parser.add_argument("--format", choices=sources.FORMATS, help="default: by the file's name; lines for stdin")
    parser.add_argument("--key", metavar="COLUMN", help="the column that decides a row's partition")
    parser.add_argument("--follow", action="store_true", help="go on when the file grows, until Ctrl-C")
    parser.add_argument(
        "--partitions", type=arguments.count, metavar="N", help="for a topic that is created; default: 1"
    )
    parser.add_argument("--compression", choices=("lz4", "zstd"), help="compress batches")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(shell: Shell) -> int:
    args = shell.args
    path = None if args.file in (None, "-") else args.file
    kind = args.format or sources.format_of(path)
    if kind == "lines" and args.key:
        args.usage_error("--key names a column: it needs a FILE or --format with columns")
    if args.follow and kind not in ("lines", "json"):
        args.usage_error(f"--follow works for lines and JSON lines, not for {kind}")
    if path is not None and not Path(path).is_file():
        raise InvalidArgument(f"there is no file {path}")
    began = time.monotonic()
    with shell.connect() as cluster:
        topic = _existing(shell, cluster)
        send = _send_lines if _by_line(shell, topic, path, kind) else _send_frames
        records, payload_bytes = send(shell, cluster, topic, path, kind)
    seconds = time.monotonic() - began
    shell.result(
        f"{count_of(records, 'record')} into {args.topic} ({size(payload_bytes)}, {seconds:.1f} s)",
        {"topic": args.topic, "records": records, "bytes": payload_bytes, "seconds": round(seconds, 3)},
    )
    return 0


def _by_line(shell: Shell, topic: TopicDescription | None, path: str | None, kind: str) -> bool:
    """Whether each line is a record by itself. JSON is read as a table where nothing waits for single lines."""
    if kind != "json" or topic is None:
        return kind == "lines" or bool(shell.args.follow)
    return topic.kind == "raw" or path is None or bool(shell.args.follow)


def _existing(shell: Shell, cluster: Cluster) -> TopicDescription | None:
    args = shell.args
    try:
        topic = cluster.describe_topic(args.topic)
    except TopicNotFound:
        return None
    if args.partitions not in (None, topic.partitions):
        raise InvalidArgument(
            f"topic {topic.name!r} has {count_of(topic.partitions, 'partition')} already: leave out --partitions, or "
            f"raise them with: raystream topic alter {topic.name} --partitions {args.partitions}"
        )
    if topic.kind == "typed" and args.key not in (None, topic.key):
        raise InvalidArgument(f"topic {topic.name!r} has {topic.key!r} as its key column: leave out --key")
    return topic


def _create(shell: Shell, cluster: Cluster, **columns: Any) -> TopicDescription:
    args = shell.args
    topic = cluster.create_topic(args.topic, partitions=args.partitions or 1, **columns)
    shell.note(f"created topic {topic.name} ({topic.kind}, {count_of(topic.partitions, 'partition')})")
    return cluster.describe_topic(args.topic)


def _send_lines(
    shell: Shell, cluster: Cluster, topic: TopicDescription | None, path: str | None, kind: str
) -> tuple[int, int]:
    """A record a line. Lines of JSON are the rows of a typed topic, or values as they are of a raw one."""
    args = shell.args
    topic = topic or _create(shell, cluster)
    if kind == "lines" and topic.kind == "typed":
        raise InvalidArgument(
            f"topic {topic.name!r} is typed: give rows, with --format {'|'.join(sources.FORMATS[1:])}"
        )
    records = payload_bytes = 0
    with cluster.producer(compression=args.compression) as producer, shell.progress("records") as progress:
        task = progress.add_task(args.topic, total=None)
        for line in sources.lines(path, follow=args.follow):
            if kind == "lines":
                producer.send(args.topic, line)
            elif line.strip():
                row = _row(line, records + 1)
                if topic.kind == "typed":
                    producer.send(args.topic, row)
                else:
                    producer.send(args.topic, line, key=_key(row, args.key, records + 1))
            else:
                continue
            records += 1
            payload_bytes += len(line)
            if records % _PROGRESS_EVERY == 0:
                progress.update(task, completed=records)
    return records, payload_bytes


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidRecord(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidRecord(f"line {number} is not a JSON object")
    return row


def _key(row: dict[str, Any], column: str | None, number: int) -> str | None:
    if column is None:
        return None
    if column not in row:
        raise InvalidRecord(f"line {number} has no {column!r} to be its key")
    value = row[column]
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _send_frames(
    shell: Shell, cluster: Cluster, topic: TopicDescription | None, path: str | None, kind: str
) -> tuple[int, int]:
    args = shell.args
    records = payload_bytes = 0
    known = topic.schema if topic is not None else None
    with sources.frames(path, kind, known) as source:
        if args.key and args.key not in source.schema.names:
            raise InvalidArgument(f"there is no column {args.key!r}; there are: {', '.join(source.schema.names)}")
        if topic is None:
            _create(shell, cluster, schema=source.schema, key=args.key)
        with cluster.producer(compression=args.compression) as producer, shell.progress("rows") as progress:
            task = progress.add_task(args.topic, total=source.rows)
            for batch in _acknowledged(producer, args.topic, source.batches):
                records += batch.num_rows
                payload_bytes += batch.nbytes
                progress.update(task, completed=records)
    return records, payload_bytes


def _acknowledged(producer: Any, topic: str, batches: Iterator[Any]) -> Iterator[Any]:
    """Sends batches, a few in flight, and yields each when it is acknowledged."""
    waiting: deque[tuple[Any, Any]] = deque()
    for batch in batches:
        waiting.append((batch, producer.send_frame(topic, batch)))
        if len(waiting) >= _FRAMES_IN_FLIGHT:
            sent, delivery = waiting.popleft()
            delivery.result()
            yield sent
    for sent, delivery in waiting:
        delivery.result()
        yield sent
