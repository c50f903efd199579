"""raystream quota list|set|remove"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell

_LIST = {"client_id": "client", "produce_bytes_per_s": "produce B/s", "fetch_bytes_per_s": "fetch B/s"}
_CLIENT_HELP = 'the client_id of producers and consumers; "" stands for all that have no quota of their own'


def add(commands: Any, options: ArgumentParser) -> None:
    group = commands.add_parser("quota", help="list, set and remove clients' quotas")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = verbs.add_parser("list", parents=[options], help="list quotas")
    listing.set_defaults(run=_list)

    setting = verbs.add_parser("set", parents=[options], help="limit what clients of one id may move on each node")
    setting.add_argument("client", metavar="CLIENT", help=_CLIENT_HELP)
    setting.add_argument("--produce", type=arguments.count, metavar="BYTES", help="bytes per second; default: no limit")
    setting.add_argument("--fetch", type=arguments.count, metavar="BYTES", help="bytes per second; default: no limit")
    setting.set_defaults(run=_set, parser=setting)

    remove = verbs.add_parser("remove", parents=[options], help="remove a client's quota")
    remove.add_argument("client", metavar="CLIENT", help=_CLIENT_HELP)
    remove.set_defaults(run=_remove)


def _list(shell: Shell) -> int:
    with shell.connect() as cluster:
        quotas = cluster.quotas()
    if shell.json:
        shell.print_json(quotas)
    else:
        shell.table(quotas, _LIST)
    return 0


def _set(shell: Shell) -> int:
    args = shell.args
    if args.produce is None and args.fetch is None:
        args.parser.error("give --produce, --fetch or both; raystream quota remove lifts a limit")
    with shell.connect() as cluster:
        cluster.set_quota(args.client, produce_bytes_per_s=args.produce, fetch_bytes_per_s=args.fetch)
    shell.result(
        f"client {args.client!r} is limited",
        {"client_id": args.client, "produce_bytes_per_s": args.produce, "fetch_bytes_per_s": args.fetch},
    )
    return 0


def _remove(shell: Shell) -> int:
    client = shell.args.client
    with shell.connect() as cluster:
        cluster.set_quota(client)
    shell.result(f"client {client!r} has no quota of its own", {"removed": client})
    return 0
