"""raystream topic create|list|describe|alter|reassign|elect|delete"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser
from typing import Any

from raystream.commands import arguments
from raystream.commands.shell import Shell, count_of
from raystream.errors import KeysMove

LIST = {
    "name": "topic",
    "kind": "kind",
    "partitions": "partitions",
    "replication_factor": "replicas",
    "records": "records",
    "size_bytes": "size",
    "key": "key",
}
_PARTITIONS = {
    "partition": "partition",
    "leader": "leader",
    "replicas": "replicas",
    "isr": "in sync",
    "start_offset": "start offset",
    "end_offset": "end offset",
    "size_bytes": "size",
    "segments": "segments",
}


def add(commands: Any, options: ArgumentParser) -> None:
    group = commands.add_parser("topic", help="create, list, describe, alter, move and delete topics")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    create = verbs.add_parser("create", parents=[options], help="create a topic")
    create.add_argument("name", metavar="TOPIC")
    create.add_argument("--partitions", type=arguments.count, default=1, metavar="N", help="default: 1")
    create.add_argument(
        "--replication-factor", type=arguments.count, metavar="N", help="default: up to 3, one a broker"
    )
    create.add_argument("--schema", type=arguments.schema, metavar="NAME:TYPE,…", help="a typed topic's columns")
    create.add_argument("--key", metavar="COLUMN", help="the column that decides a row's partition")
    create.add_argument("--time", metavar="COLUMN", help="the column that is a row's timestamp")
    _add_config(create)
    create.add_argument("--exist-ok", action="store_true", help="succeed where the topic exists")
    create.set_defaults(run=_create)

    listing = verbs.add_parser("list", parents=[options], help="list topics")
    listing.set_defaults(run=_list)

    describe = verbs.add_parser("describe", parents=[options], help="show a topic's partitions, schema and settings")
    describe.add_argument("name", metavar="TOPIC")
    describe.set_defaults(run=_describe)

    alter = verbs.add_parser("alter", parents=[options], help="change settings, add partitions or replicas")
    alter.add_argument("name", metavar="TOPIC")
    alter.add_argument("--partitions", type=arguments.count, metavar="N", help="raise the number of partitions to N")
    alter.add_argument(
        "--replication-factor", type=arguments.count, metavar="N", help="keep N replicas of each partition"
    )
    _add_config(alter)
    alter.set_defaults(run=_alter, usage_error=alter.error)

    reassign = verbs.add_parser(
        "reassign",
        parents=[options],
        help="move partitions to other brokers",
        description="New replicas are filled while the topic is in use; then the old ones go.",
    )
    reassign.add_argument("name", metavar="TOPIC")
    reassign.add_argument(
        "--replicas",
        type=arguments.placement,
        nargs="+",
        required=True,
        metavar="PARTITION=BROKER,…",
        help="where a partition's replicas are to be, the preferred leader first, such as 0=1,2,3",
    )
    reassign.set_defaults(run=_reassign, usage_error=reassign.error)

    elect = verbs.add_parser(
        "elect",
        parents=[options],
        help="give leads back to preferred replicas",
        description="Gives leads back to the first replica of each partition, where that is in sync. Nothing is lost "
        "by that, unless --unclean is given.",
    )
    elect.add_argument("name", metavar="TOPIC", nargs="?", help="default: every topic")
    elect.add_argument(
        "--unclean",
        action="store_true",
        help="where nobody eligible is left, let any living replica lead: RECORDS THAT IT LACKS ARE LOST",
    )
    elect.set_defaults(run=_elect)

    delete = verbs.add_parser("delete", parents=[options], help="delete topics and their records")
    delete.add_argument("names", metavar="TOPIC", nargs="+")
    delete.set_defaults(run=_delete)


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=arguments.setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting, such as flush=os; may be repeated; NAME=default puts it back",
    )


def _create(shell: Shell) -> int:
    args = shell.args
    with shell.connect() as cluster:
        made = cluster.create_topic(
            args.name,
            partitions=args.partitions,
            replication_factor=args.replication_factor,
            schema=args.schema,
            key=args.key,
            time=args.time,
            config={name: value for name, value in args.config if value is not None},
            exist_ok=args.exist_ok,
        )
    shell.result(f"{made.name}: {made.kind}, {count_of(made.partitions, 'partition')}", {"topic": made})
    return 0


def _list(shell: Shell) -> int:
    with shell.connect() as cluster:
        topics = cluster.topics()
    if shell.json:
        shell.print_json(topics)
    else:
        shell.table(topics, LIST)
    return 0


def _describe(shell: Shell) -> int:
    with shell.connect() as cluster:
        topic = cluster.describe_topic(shell.args.name)
    if shell.json:
        shell.print_json(topic)
        return 0
    shell.facts(
        {
            "topic": topic.name,
            "kind": topic.kind,
            "records": topic.records,
            "size": topic.size_bytes,
            **({"key": topic.key} if topic.key else {}),
            **({"time": topic.time} if topic.time else {}),
            "config": topic.config,
        }
    )
    shell.out.print()
    shell.table(topic.partition_list, _PARTITIONS)
    if topic.schema is not None:
        shell.out.print()
        shell.facts({field.name: str(field.type) for field in topic.schema})
    return 0


def _alter(shell: Shell) -> int:
    args = shell.args
    if not args.config and args.partitions is None and args.replication_factor is None:
        args.usage_error("nothing to alter: give --config NAME=VALUE, --partitions N or --replication-factor N")
    with shell.connect() as cluster:
        if args.config or args.replication_factor is not None:
            cluster.alter_topic(args.name, config=dict(args.config), replication_factor=args.replication_factor)
        if args.partitions is not None:
            with warnings.catch_warnings(record=True) as moved:
                warnings.simplefilter("always", KeysMove)
                cluster.add_partitions(args.name, args.partitions)
            for warning in moved:
                shell.note(str(warning.message))
        topic = cluster.describe_topic(args.name)
    replicas = [] if args.replication_factor is None else [count_of(topic.replication_factor, "replica")]
    facts = ", ".join(
        [
            count_of(topic.partitions, "partition"),
            *replicas,
            *(f"{name}={topic.config[name]}" for name, _ in args.config),
        ]
    )
    shell.result(f"{topic.name}: {facts}", {"topic": topic})
    return 0


def _reassign(shell: Shell) -> int:
    args = shell.args
    replicas = dict(args.replicas)
    if len(replicas) != len(args.replicas):
        args.usage_error("argument --replicas: a partition is named twice")
    with shell.connect() as cluster:
        topic = cluster.reassign(args.name, replicas)
    if shell.json:
        shell.print_json(topic)
    else:
        shell.table(topic.partition_list, _PARTITIONS)
    return 0


def _elect(shell: Shell) -> int:
    args = shell.args
    with shell.connect() as cluster:
        cluster.elect_leaders(args.name, unclean=args.unclean)
    shell.result(f"{args.name or 'every topic'}: preferred replicas lead where they are in sync", {"topic": args.name})
    return 0


def _delete(shell: Shell) -> int:
    names = shell.args.names
    with shell.connect() as cluster:
        for name in names:
            cluster.delete_topic(name)
    shell.result(f"deleted {', '.join(names)}", {"deleted": names})
    return 0
