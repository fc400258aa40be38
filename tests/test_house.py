"""The house keeps its shape: who may import whom, and what the README tells people to type."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mesh", "planner", "runtime", "apps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# package -> what of ours it may import (a package, or single modules of it)
ALLOWED = {
    "mesh": ("mesh",),
    "planner": ("planner", "mesh.ids", "mesh.errors"),
    "runtime": (
        "runtime",
        "planner.plan",
        "planner.profile",
        "mesh.codec",
        "mesh.ids",
        "mesh.errors",
        "mesh.fault_points",
        "mesh.limits",
        "mesh.tensor_frame",
    ),
    "apps": ("apps", "runtime", "planner", "mesh"),
}
# What decides is a function of values: no waiting, no clock, no chance, no network.
PURE = (
    "mesh/ids.py",
    "mesh/errors.py",
    "mesh/fault_points.py",
    "mesh/limits.py",
    "mesh/messages.py",
    "mesh/heartbeat.py",
    "mesh/suspicion.py",
    "mesh/membership.py",
    "mesh/election.py",
    "mesh/leadership.py",
    "mesh/accusations.py",
    "mesh/circle.py",
    "mesh/core.py",
    "mesh/crowd.py",
    "mesh/electors.py",
    "mesh/gossip.py",
    "mesh/hearing.py",
    "mesh/inquiries.py",
    "mesh/members.py",
    "mesh/probing.py",
    "mesh/overlay.py",
    "mesh/pages.py",
    "mesh/rumours.py",
    "mesh/swim.py",
    "mesh/effects.py",
    "mesh/events.py",
    "mesh/peer_events.py",
)
IMPURE = {"asyncio", "time", "random", "socket", "aiohttp", "zeroconf", "threading", "subprocess"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide directions"
            yield node.module or ""


def of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    allowed = ALLOWED[of(path)]
    for name in imports(path):
        if name.split(".")[0] in PACKAGES:
            assert any(name == ok or name.startswith(ok + ".") for ok in allowed), (
                f"{path.relative_to(ROOT)} may not import {name}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_runtime_and_its_daemon_know_torch(path: Path) -> None:
    if of(path) in ("mesh", "planner"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}


def test_planner_waits_for_nothing() -> None:
    for path in FILES:
        if of(path) == "planner":
            assert not IMPURE & {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("name", PURE)
def test_deciders_are_pure(name: str) -> None:
    assert not IMPURE & {imported.split(".")[0] for imported in imports(ROOT / name)}


def test_no_import_circles_between_files() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set(imports(path)) for path in FILES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import circle: {' -> '.join((*trail, name))}"
        if name in done or name not in graph:
            return
        for imported in graph[name]:
            visit(imported, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_names_only_verbs_and_targets_that_exist() -> None:
    verbs = subprocess.run(
        [sys.executable, "-m", "apps.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = readme_commands()
    assert commands
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[0].endswith("potluck"):
            assert re.search(rf"^\W*{words[1]}\b", verbs, re.M), command
