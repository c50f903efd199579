"""raystream demo"""

from __future__ import annotations

import io
import os
import tempfile
import time
from argparse import ArgumentParser
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live

from raystream.commands.shell import Shell
from raystream.errors import InvalidArgument, TopicExists, TopicNotFound

if TYPE_CHECKING:
    import pandas as pd

    from raystream.cluster import Cluster
    from raystream.demo.job import Outcome
    from raystream.demo.ledger import Range
    from raystream.demo.reconcile import Reconciliation


def add(commands: Any, options: ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo",
        parents=[options],
        help="the main job on real data: stream 336,776 flights, kill a consumer, lose nothing",
        description="Publishes the flights that left New York in 2013 while two consumers, as Ray tasks, keep delay "
        "statistics; kills one with SIGKILL half-way; then reconciles every record. Runs on an embedded cluster.",
    )
    parser.add_argument("--resume", action="store_true", help="show what an earlier run left in --data-dir")
    parser.add_argument("--png", metavar="FILE", help="also plot into a PNG")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(shell: Shell) -> int:
    from raystream.demo import flights, show
    from raystream.demo.reconcile import reconcile

    args = shell.args
    if args.address:
        args.usage_error("the demo runs on an embedded cluster of its own: leave out --address")
    if args.resume and not args.data_dir:
        args.usage_error("--resume needs the --data-dir of an earlier run")
    if args.resume and not Path(args.data_dir).is_dir():
        raise InvalidArgument(f"there is no directory {args.data_dir}: run once without --resume")
    os.environ.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    source = flights.load()
    with ExitStack() as stack:
        if args.data_dir is None:
            args.data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="raystream-demo-"))
        cluster = stack.enter_context(shell.connect())
        outcome = None if args.resume else _stream(shell, cluster, source)
        if outcome is not None and not shell.err.is_terminal:
            shell.err.print()
        produced = _stored(shell, cluster) if outcome is None else outcome.offsets
        result = reconcile(cluster, produced, source)
    names = flights.airlines()
    if args.png:
        show.plot(result.statistics, Path(args.png), names)
    seconds = time.monotonic() - began
    if shell.json:
        shell.print_json(_facts(result, outcome, seconds))
    else:
        shell.out.print()
        shell.out.print(show.statistics(result.statistics, names))
        shell.out.print()
        shell.out.print(show.summary(result, outcome))
        shell.out.print()
        shell.out.print(show.verdict(result))
        shell.note(f"{seconds:.0f} s in all, Ray's start included")
    return 0 if result.ok else 1


def _stream(shell: Shell, cluster: Cluster, source: pd.DataFrame) -> Outcome:
    from raystream.demo.job import Demo

    # Ray prints on stdout that a worker died; here that is the plan, and the picture shows it.
    with redirect_stdout(io.StringIO()), Live(console=shell.err, refresh_per_second=8, redirect_stdout=False) as live:
        try:
            return Demo(cluster, source, live.update).run()
        except TopicExists:
            raise TopicExists(
                f"{shell.args.data_dir} holds an earlier run: show it with --resume, or choose another --data-dir"
            ) from None


def _stored(shell: Shell, cluster: Cluster) -> dict[int, Range]:
    """What the topic holds after a restart; shows topic and positions as they were found."""
    from raystream.commands import group, topic
    from raystream.demo import flights
    from raystream.demo.worker import GROUP

    try:
        found = cluster.describe_topic(flights.TOPIC)
    except TopicNotFound:
        raise TopicNotFound(f"{shell.args.data_dir} holds no earlier run: run once without --resume") from None
    if not shell.json:
        shell.table([found], topic.LIST)
        shell.out.print()
        shell.table(cluster.lag(GROUP), group.POSITIONS)
    return {partition: (held.start, held.stop) for partition, held in cluster.read(flights.TOPIC).ranges().items()}


def _facts(result: Reconciliation, outcome: Outcome | None, seconds: float) -> dict[str, Any]:
    facts = {**vars(result), "statistics": result.statistics.to_dict("index"), "ok": result.ok, "seconds": seconds}
    return facts if outcome is None else {**facts, **vars(replace(outcome))}
