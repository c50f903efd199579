"""The house rules that a machine can check. Floors and formatting are import-linter's and ruff's."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raystream"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

FILE_LINES = 500
FUNCTION_LINES = 70
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
PRINTING = ("raystream/cli.py", "raystream/commands/", "raystream/demo/")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name(path)}:{function.name} has {function.end_lineno - function.lineno + 1} lines"
        for path in PYTHON
        for function in functions(parsed(path))
        if function.end_lineno is not None and function.end_lineno - function.lineno >= FUNCTION_LINES
    ]
    assert long == []


def test_file_names_say_what_a_reader_looks_for() -> None:
    assert [name(path) for path in PYTHON if path.stem.strip("_") in BANNED_NAMES] == []


def test_no_bare_except() -> None:
    bare = [
        f"{name(path)}:{node.lineno}"
        for path in PYTHON
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_print_is_the_command_lines() -> None:
    printing = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        if not name(path).startswith(PRINTING)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_ray_remote_stands_in_one_file() -> None:
    remote = {
        name(path)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and node.attr == "remote"
        and isinstance(node.value, ast.Name)
        and node.value.id == "ray"
    }
    assert remote == {"raystream/actors/launch.py"}


def test_private_names_are_used() -> None:
    """Every module-level name that begins with an underscore is read somewhere in its own package."""
    words = [re.findall(r"\w+", path.read_text()) for path in PYTHON]
    counts: dict[str, int] = {}
    for file in words:
        for word in file:
            counts[word] = counts.get(word, 0) + 1
    unused = []
    for path in SOURCES:
        for node in parsed(path).body:
            targets: list[str] = []
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                targets = [] if node.decorator_list else [node.name]  # a decorator may register it
            elif isinstance(node, ast.Assign):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                targets = [node.target.id]
            private = [target for target in targets if target.startswith("_") and not target.startswith("__")]
            unused += [f"{name(path)}:{target}" for target in private if counts[target] < 2]
    assert unused == []


def test_no_dead_code() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "vulture"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


@pytest.mark.parametrize("module", ["raystream", "raystream.aio"])
def test_everything_public_is_documented(module: str) -> None:
    home = importlib.import_module(module)
    undocumented = [
        public
        for public in home.__all__
        if isinstance(value := getattr(home, public), (type, FunctionType, ModuleType)) and not value.__doc__
    ]
    assert undocumented == []
    for public in home.__all__:
        value = getattr(home, public)
        if isinstance(value, type):
            methods = {n: m for n, m in vars(value).items() if not n.startswith("_") and callable(m)}
            bare = [
                f"{public}.{n}"
                for n, m in methods.items()
                if value.__module__.startswith("raystream") and not m.__doc__
            ]
            assert bare == []


def test_ci_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*pytest.*$", readme, re.MULTILINE)
    assert len(commands) == 1
    assert commands[0].replace(".venv", ".venv-ci") in (ROOT / ".ci" / "run").read_text()


def test_nothing_names_a_place_outside_the_repository() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode != 0:
        pytest.skip("no git here to list the files of the repository")
    private = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+)/")
    texts = {path: (ROOT / path) for path in files.stdout.split("\0") if path and path != "tests/test_tidy.py"}
    found = [
        path for path, file in texts.items() if file.is_file() and private.search(file.read_text(errors="replace"))
    ]
    assert found == []


def test_the_version_stands_in_step() -> None:
    import raystream

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == raystream.__version__
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
