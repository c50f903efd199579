"""`ray up cluster.yaml` is accepted by Ray, and brings raystream up on every node after Ray."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raystream.cli import build_parser


@pytest.fixture(scope="module")
def config() -> Any:
    return yaml.safe_load((Path(__file__).parent.parent / "cluster.yaml").read_text())


def test_rays_own_schema_takes_it(config: Any) -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.validate(config, json.loads(schema.read_text()))


def test_the_head_is_a_declared_node_type(config: Any) -> None:
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_raystream_starts_after_ray(config: Any, role: str) -> None:
    commands = config[f"{role}_start_ray_commands"]
    ray = next(at for at, command in enumerate(commands) if "ray start --" in command)
    words = commands[ray + 1].split()
    assert words[:2] == ["raystream", "start"]
    assert build_parser().parse_args(words[1:]).address == "auto"
