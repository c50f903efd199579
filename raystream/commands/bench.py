"""raystream bench"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell


def add(commands: Any, options: ArgumentParser) -> None:
    parser = commands.add_parser("bench", parents=[options], help="measure throughput and latency on this machine")
    parser.add_argument("--rows", type=arguments.count, default=1_000_000, metavar="N", help="default: 1000000")
    parser.set_defaults(run=run)


def run(shell: Shell) -> int:
    from raystream import bench

    results = bench.run(shell.args.rows)
    if shell.json:
        shell.print_json(results)
    elif results:
        shell.table(results, {f.name: f.name.replace("_", " ") for f in dataclasses.fields(results[0])})
    return 0
