"""The names that users, docs and later releases rely on, with their parameters and defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raystream
from raystream import aio
from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.client.latest import Latest
from raystream.client.producer import Producer
from raystream.client.reader import View
from raystream.client.share_consumer import ShareConsumer
from raystream.client.table import Table
from raystream.cluster import Cluster
from raystream.config import ConsumerConfig, ProducerConfig, ShareConfig, TopicConfig
from raystream.errors import RaystreamError
from raystream.jobs import ConsumerJob

REQUIRED = inspect.Parameter.empty
ANY = object()
"""In place of a default: it must have one, whichever."""

CALLS: list[tuple[Any, str, dict[str, Any]]] = [
    (raystream, "connect", {"address": None, "data_dir": None, "namespace": "raystream"}),
    (
        Cluster,
        "create_topic",
        {
            "name": REQUIRED,
            "partitions": 1,
            "replication_factor": None,
            "schema": None,
            "key": None,
            "time": None,
            "config": ANY,
            "exist_ok": False,
        },
    ),
    (Cluster, "topics", {}),
    (Cluster, "describe_topic", {"name": REQUIRED}),
    (Cluster, "alter_topic", {"name": REQUIRED, "config": None, "replication_factor": None}),
    (Cluster, "add_partitions", {"name": REQUIRED, "partitions": REQUIRED}),
    (Cluster, "delete_topic", {"name": REQUIRED}),
    (Cluster, "delete_records", {"name": REQUIRED, "before": REQUIRED}),
    (Cluster, "groups", {}),
    (Cluster, "describe_group", {"group": REQUIRED}),
    (Cluster, "lag", {"group": REQUIRED}),
    (
        Cluster,
        "reset_offsets",
        {"group": REQUIRED, "topic": REQUIRED, "to": None, "dry_run": False, "shift": None},
    ),
    (Cluster, "delete_group", {"group": REQUIRED}),
    (Cluster, "brokers", {}),
    (Cluster, "health", {}),
    (Cluster, "set_quota", {"client_id": REQUIRED, "produce_bytes_per_s": None, "fetch_bytes_per_s": None}),
    (Cluster, "quotas", {}),
    (Cluster, "write", {"topic": REQUIRED, "frame": REQUIRED, "key": None}),
    (Cluster, "producer", {}),
    (Cluster, "consumer", {"topics": REQUIRED, "group": None, "start": ANY, "share": None, "dead_letter": None}),
    (Cluster, "read", {"topic": REQUIRED, "start": "earliest", "end": "latest", "columns": None, "filter": None}),
    (
        Cluster,
        "run_consumers",
        {"topics": REQUIRED, "group": None, "each_batch": None, "workers": ANY, "name": None, "num_cpus": 0},
    ),
    (Cluster, "pipeline", {"source": REQUIRED, "transform": REQUIRED, "sink": REQUIRED, "group": REQUIRED}),
    (Cluster, "close", {}),
    (
        Producer,
        "send",
        {"topic": REQUIRED, "value": ANY, "key": None, "headers": None, "timestamp_ms": None, "partition": None},
    ),
    (Producer, "send_many", {"topic": REQUIRED, "records": REQUIRED}),
    (Producer, "send_frame", {"topic": REQUIRED, "frame": REQUIRED}),
    (Producer, "flush", {}),
    (Producer, "transaction", {}),
    (Producer, "begin_transaction", {}),
    (Producer, "commit_transaction", {}),
    (Producer, "abort_transaction", {}),
    (Producer, "commit_offsets", {"consumer": REQUIRED, "batch": None}),
    (Producer, "close", {}),
    (Consumer, "poll", {"timeout": ANY}),
    (Consumer, "batches", {}),
    (Consumer, "commit", {"batch": None}),
    (Consumer, "rewind", {}),
    (Consumer, "seek", {"topic": REQUIRED, "partition": REQUIRED, "offset": REQUIRED}),
    (Consumer, "pause", {}),
    (Consumer, "resume", {}),
    (Consumer, "assignment", {}),
    (Consumer, "position", {}),
    (Consumer, "committed", {}),
    (Consumer, "lag", {}),
    (Consumer, "close", {}),
    (Consumer, "stop", {}),
    (
        Consumer,
        "run",
        {"each_record": None, "each_batch": None, "on_error": "stop", "retries": 3, "dead_letter": None},
    ),
    (ShareConsumer, "poll", {"timeout": ANY}),
    (ShareConsumer, "batches", {}),
    (ShareConsumer, "acknowledge", {"what": REQUIRED, "word": "accept"}),
    (ShareConsumer, "renew", {"what": REQUIRED}),
    (ShareConsumer, "deliveries", {"record": REQUIRED}),
    (ShareConsumer, "commit", {}),
    (ShareConsumer, "run", {"each_record": None, "each_batch": None, "on_error": "release"}),
    (ShareConsumer, "stop", {}),
    (ShareConsumer, "close", {}),
    (Batch, "to_arrow", {"metadata": False}),
    (Batch, "to_pandas", {}),
    (Batch, "to_polars", {}),
    (Batch, "__len__", {}),
    (Batch, "__arrow_c_stream__", {}),
    (ConsumerJob, "status", {}),
    (ConsumerJob, "stop", {}),
    (ConsumerJob, "wait", {}),
    (View, "to_arrow", {}),
    (View, "to_pandas", {}),
    (View, "to_polars", {}),
    (View, "count", {}),
    (View, "offsets", {}),
    (View, "head", {}),
    (View, "tail", {}),
    (View, "latest", {}),
    (Latest, "to_arrow", {"metadata": False}),
    (Latest, "count", {}),
    (Cluster, "table", {"topic": REQUIRED}),
    (Table, "get", {}),
    (Table, "items", {}),
    (Table, "snapshot", {}),
    (Table, "watch", {}),
    (Table, "wait_until_caught_up", {"timeout": ANY}),
    (Table, "close", {}),
]


@pytest.mark.parametrize(("home", "method", "expected"), CALLS, ids=[f"{h.__name__}.{m}" for h, m, _ in CALLS])
def test_signature(home: Any, method: str, expected: dict[str, Any]) -> None:
    found = {n: p for n, p in inspect.signature(getattr(home, method)).parameters.items() if n != "self"}
    positions = [n for n in found if n in expected]
    assert positions == list(expected), "names are missing, or stand in another order"
    for name, default in expected.items():
        if default is ANY:
            assert found[name].default is not REQUIRED, name
        else:
            assert found[name].default == default, name
    unasked = [n for n, p in found.items() if n not in expected and p.default is REQUIRED and p.kind < p.VAR_POSITIONAL]
    assert not expected or unasked == [], "a parameter without a default breaks callers"


def test_everything_in_all_is_there() -> None:
    assert [name for name in raystream.__all__ if not hasattr(raystream, name)] == []
    assert sorted(raystream.__all__) == sorted(set(raystream.__all__))


def test_errors_form_one_tree_and_all_are_exported() -> None:
    def below(kind: type) -> list[type]:
        direct: list[type] = kind.__subclasses__()
        return [kind, *(sub for child in direct for sub in below(child))]

    public = {kind.__name__ for kind in below(RaystreamError) if kind.__module__ == "raystream.errors"}
    assert public <= set(raystream.__all__)


def test_the_page_of_names_has_all_names_and_settings() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    words = set(re.findall(r"\w+", page))
    of_cluster = {name for name in vars(Cluster) if not name.startswith("_")}
    assert (of_cluster | {name for _, name, _ in CALLS if not name.startswith("_")}) - words == set()
    for kind in (TopicConfig, ProducerConfig, ConsumerConfig, ShareConfig):
        for setting in dataclasses.fields(kind):
            assert f"| `{setting.name}` | `{setting.default!r}` |" in page


def test_aio_has_the_same_names() -> None:
    assert inspect.iscoroutinefunction(aio.connect)
    home = {name for name in vars(Cluster) if not name.startswith("_")}
    missing = {name for name in home if not hasattr(aio.Cluster, name)}
    assert missing == set()


def test_batch_says_whether_it_caught_up() -> None:
    assert isinstance(inspect.getattr_static(Batch, "caught_up"), property)


def test_import_is_light() -> None:
    """Neither Ray nor pandas may load before they are needed."""
    code = "import raystream, sys; print([m for m in ('ray', 'pandas', 'pyarrow', 'rich') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'conect'"):
        _ = raystream.conect
