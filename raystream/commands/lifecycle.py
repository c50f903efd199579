"""raystream start | stop | status"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from raystream.actors.processes import answers
from raystream.commands import broker, localray, topic
from raystream.commands.shell import Shell, count_of
from raystream.errors import ClusterNotFound, DataDirectoryInUse, DataDirectoryUnusable, Unavailable
from raystream.storage.root import prepare, read_owner, require_room

NAMESPACE = "raystream"


def add(commands: Any, options: ArgumentParser) -> None:
    start = commands.add_parser(
        "start",
        parents=[options],
        help="bring raystream up on the Ray cluster at hand, or on a local one that outlives the command",
        description="Brings raystream up on the Ray that --address or $RAY_ADDRESS names, or that `ray start` left "
        "running on this machine. Where there is none, or --data-dir names a directory, it starts a local Ray.",
    )
    start.set_defaults(run=_start)
    stop = commands.add_parser(
        "stop", parents=[options], help="stop raystream, and the local Ray if `raystream start` started it; data stays"
    )
    stop.set_defaults(run=_stop)
    status = commands.add_parser("status", parents=[options], help="show brokers, topics and health")
    status.set_defaults(run=_status)


def _start(shell: Shell) -> int:
    from raystream.actors.session import nodes_without_broker

    args = shell.args
    if shell.named_address is None:
        localray.use_token(make=True)
    where = shell.named_address or _owner(shell)
    if where is None and args.data_dir is None:
        left = localray.current()
        where = args.address = left if left and answers(left) else None
    if where is None:
        shell.note("starting Ray on this machine; it outlives this command")
        root = _root(shell)
        prepare(root, hide_from_git=True)
        require_room(root)
        started = localray.running(root) or localray.start(root)
        where = args.address = started.address
        args.data_dir = str(root)
    with shell.connect() as cluster:
        refused = nodes_without_broker()
        topics = len(cluster.topics())
        facts = {"address": cluster.address, "data_dir": cluster.data_dir, "topics": topics}
    token = " RAY_AUTH_MODE=token" if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    shell.result(
        f"raystream is up at {facts['address']}, data in {facts['data_dir']}, {count_of(topics, 'topic')}\n"
        f"from other directories: export RAY_ADDRESS={facts['address']}{token}",
        facts,
    )
    if refused:
        raise DataDirectoryUnusable(f"not on every node: {'; '.join(refused)}")
    return 0


def _stop(shell: Shell) -> int:
    from raystream.actors.session import join_ray, stop_raystream

    root = _root(shell)
    ours = None if shell.named_address else localray.running(root)
    where = shell.named_address or _owner(shell) or (ours.address if ours else None)
    if where is None:
        shell.result(f"nothing runs with its data in {root}", {"stopped": False, "ray": False})
        return 0
    join_ray(where)
    stop_raystream(NAMESPACE)
    if ours is not None:
        import ray

        ray.shutdown()
        localray.stop(root, ours)
    shell.result(
        f"raystream at {where} is stopped{' and Ray with it' if ours else '; Ray goes on'}; the data stays",
        {"stopped": True, "ray": ours is not None, "address": where},
    )
    return 0


def _status(shell: Shell) -> int:
    where = shell.named_address or _owner(shell, embedded=True)
    if where is None:
        raise ClusterNotFound(f"no cluster runs with its data in {_root(shell)}: raystream start brings one up")
    if shell.named_address:
        _require_raystream(where)
    with shell.connect() as cluster:
        health, brokers, topics = cluster.health(), cluster.brokers(), cluster.topics()
        address = cluster.address
    if shell.json:
        shell.print_json({"address": address, "health": health, "brokers": brokers, "topics": topics})
    else:
        shell.facts({"address": address, "health": "ok" if health.ok else "; ".join(health.problems)})
        shell.out.print()
        broker.show(shell, brokers)
        shell.out.print()
        shell.table(topics, topic.LIST)
    return 0 if health.ok else 1


def _root(shell: Shell) -> Path:
    from raystream.actors.session import embedded_root

    return embedded_root(shell.args.data_dir)


def _owner(shell: Shell, *, embedded: bool = False) -> str | None:
    """The address of the live cluster that owns the data directory. Unless `embedded` is fine too, one that lives
    inside another process is refused: it ends with that process and not by our doing."""
    from raystream.actors.processes import is_alive

    root = _root(shell)
    owner = read_owner(root)
    if owner is None or not is_alive(owner.pid):
        return None
    if owner.embedded and not embedded:
        raise DataDirectoryInUse(
            f"the cluster with its data in {root} lives inside pid {owner.pid} and ends with it: end that process first"
        )
    return owner.address


def _require_raystream(address: str) -> None:
    """Joins Ray and sees that raystream is up there, so that looking does not bring it up."""
    import ray

    from raystream.actors.finding import find_broker
    from raystream.actors.session import join_ray

    join_ray(address)
    try:
        find_broker(NAMESPACE, ray.get_runtime_context().get_node_id())
    except Unavailable:
        raise ClusterNotFound(
            f"raystream is not up on the Ray cluster at {address}: raystream start brings it up"
        ) from None
