"""raystream bench"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell


def add(commands: Any, options: ArgumentParser) -> None:
    parser = commands.add_parser("bench", parents=[options], help="measure throughput and latency on this machine")
    parser.add_argument("--rows", type=arguments.count, default=1_000_000, metavar="N", help="default: 1000000")
    parser.add_argument("--runs", type=arguments.count, default=5, metavar="N", help="the median of N; default: 5")
    parser.set_defaults(run=run)


def run(shell: Shell) -> int:
    from raystream import bench

    args = shell.args
    with ExitStack() as stack:
        # Unless a cluster is named, bench brings one of its own, whose data goes with it.
        named = shell.named_address or args.data_dir
        cluster = stack.enter_context(shell.connect()) if named else None
        stack.enter_context(shell.err.status(f"measuring {args.rows:,} records, {args.runs + 1} times"))
        results = bench.run(args.rows, args.runs, cluster)
    if shell.json:
        shell.print_json(results)
    else:
        shell.table(results, {f.name: f.name for f in dataclasses.fields(bench.BenchResult)})
    return 0
