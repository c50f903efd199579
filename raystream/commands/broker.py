"""raystream broker list|drain|remove"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell
from raystream.types import BrokerDescription

_LIST = {
    "broker_id": "broker",
    "node": "node",
    "state": "state",
    "controller": "controller",
    "partitions": "partitions",
    "rack": "rack",
    "data_dir": "data",
    "free_bytes": "free",
    "pid": "pid",
}


def add(commands: Any, options: ArgumentParser) -> None:
    group = commands.add_parser("broker", help="list, drain and remove brokers")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = verbs.add_parser("list", parents=[options], help="list brokers")
    listing.set_defaults(run=_list)

    drain = verbs.add_parser("drain", parents=[options], help="move all replicas and leads away from a broker")
    drain.add_argument("broker", type=arguments.broker, metavar="ID")
    drain.add_argument("--undo", action="store_true", help="let it take replicas again")
    drain.set_defaults(run=_drain)

    remove = verbs.add_parser("remove", parents=[options], help="forget a broker that holds nothing any more")
    remove.add_argument("broker", type=arguments.broker, metavar="ID")
    remove.set_defaults(run=_remove)


def _list(shell: Shell) -> int:
    with shell.connect() as cluster:
        brokers = cluster.brokers()
    if shell.json:
        shell.print_json(brokers)
    else:
        show(shell, brokers)
    return 0


def show(shell: Shell, brokers: Sequence[BrokerDescription]) -> None:
    """The table of brokers; racks where there are any."""
    racks = any(broker.rack for broker in brokers)
    shell.table(brokers, {name: heading for name, heading in _LIST.items() if racks or name != "rack"})


def _drain(shell: Shell) -> int:
    args = shell.args
    with shell.connect() as cluster:
        cluster.drain_broker(args.broker, drain=not args.undo)
    what = "takes replicas again" if args.undo else "is being drained: raystream broker list shows how far it is"
    shell.result(f"broker {args.broker} {what}", {"broker": args.broker, "draining": not args.undo})
    return 0


def _remove(shell: Shell) -> int:
    broker = shell.args.broker
    with shell.connect() as cluster:
        cluster.remove_broker(broker)
    shell.result(f"broker {broker} is forgotten", {"removed": broker})
    return 0
