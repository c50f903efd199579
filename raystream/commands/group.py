"""raystream group list|describe|reset|delete"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell

_LIST = {"name": "group", "kind": "kind", "state": "state", "members": "members", "topics": "topics", "lag": "lag"}
_MEMBERS = {
    "member_id": "member",
    "client": "client",
    "partitions": "partitions",
    "lag": "lag",
    "last_poll_ms_ago": "poll ms ago",
    "last_heartbeat_ms_ago": "heartbeat ms ago",
    "host": "host",
    "pid": "pid",
    "node": "node",
}
_MOVES = {"topic": "topic", "partition": "partition", "before": "before", "after": "after"}
POSITIONS = {
    "topic": "topic",
    "partition": "partition",
    "committed": "committed",
    "end_offset": "end offset",
    "lag": "lag",
    "lost": "lost",
    "member": "member",
}
_SHARES = {
    "topic": "topic",
    "partition": "partition",
    "start_offset": "start offset",
    "acquired": "acquired",
    "released": "released",
    "dying": "dying",
    "accepted": "accepted",
    "archived": "archived",
    "dead_lettered": "dead-lettered",
    "lost": "lost",
}


def add(commands: Any, options: ArgumentParser) -> None:
    group = commands.add_parser("group", help="list, describe, reset and delete consumer groups and share groups")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = verbs.add_parser("list", parents=[options], help="list groups and how far they are behind")
    listing.set_defaults(run=_list)

    describe = verbs.add_parser("describe", parents=[options], help="show a group's members, positions and lag")
    describe.add_argument("name", metavar="GROUP")
    describe.set_defaults(run=_describe)

    reset = verbs.add_parser("reset", parents=[options], help="move a group's positions; it must have no members")
    reset.add_argument("name", metavar="GROUP")
    reset.add_argument("topic", metavar="TOPIC")
    where = reset.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=arguments.position, metavar="POSITION", help=arguments.POSITION_HELP)
    where.add_argument(
        "--to-time", type=arguments.moment, metavar="TIME", help="a date or time (ISO 8601, UTC), or a duration ago"
    )
    where.add_argument("--shift", type=arguments.shift, metavar="N", help="so many records forwards, or back (-N)")
    reset.add_argument("--dry-run", action="store_true", help="show what would move, and move nothing")
    reset.set_defaults(run=_reset)

    delete = verbs.add_parser("delete", parents=[options], help="delete groups and their positions")
    delete.add_argument("names", metavar="GROUP", nargs="+")
    delete.set_defaults(run=_delete)


def _list(shell: Shell) -> int:
    with shell.connect() as cluster:
        groups = cluster.groups()
    if shell.json:
        shell.print_json(groups)
    else:
        shell.table(groups, _LIST)
    return 0


def _describe(shell: Shell) -> int:
    with shell.connect() as cluster:
        group = cluster.describe_group(shell.args.name)
    if shell.json:
        shell.print_json(group)
        return 0
    shell.facts(
        {"group": group.name, "kind": group.kind, "state": group.state, "topics": group.topics, "lag": group.lag}
    )
    if group.member_list:
        shell.out.print()
        shell.table(group.member_list, _MEMBERS)
    if group.partition_list:
        shell.out.print()
        shell.table(group.partition_list, POSITIONS)
    if group.share_list:
        shell.out.print()
        shell.table(group.share_list, _SHARES)
    return 0


def _reset(shell: Shell) -> int:
    args = shell.args
    with shell.connect() as cluster:
        to = args.to if args.to_time is None else args.to_time
        moves = cluster.reset_offsets(args.name, args.topic, to, args.dry_run, shift=args.shift)
    if shell.json:
        shell.print_json(moves)
    else:
        shell.table(moves, _MOVES)
    return 0


def _delete(shell: Shell) -> int:
    names = shell.args.names
    with shell.connect() as cluster:
        for name in names:
            cluster.delete_group(name)
    shell.result(f"deleted {', '.join(names)}", {"deleted": names})
    return 0
