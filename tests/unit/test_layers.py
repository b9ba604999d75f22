"""Imports only go down: each room may import its own floor's modules of the same room, and the floors below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("megatron_nft")
TOOLS = Path("checkpoint_tools")
FLOORS = [
    {"config", "families", "checkpoint_folder", "stop", "types", "observe"},
    {"weights", "nft", "data", "verdict", "plan", "doctor", "evaluation"},
    {"actor", "rollout"},
    {"cluster"},
    {
        *(
            "train",
            "train_async",
            "run",
            "command_line",
            "nonfinite",
            "evaluate",
            "canary",
            "sampling",
            "held_out",
            "producer",
            "group_queue",
        ),
        *("group_file", "resume", "replay", "report", "smoke", "preflight"),
    },
]
DRIVERS = FLOORS[-1] - {"report", "smoke", "preflight"}
"""Of the top floor: those that may import each other."""
ONLY_IN = {"ray": {"cluster"}, "megatron": {"actor"}, "transformer_engine": {"actor"}, "vllm": {"rollout"}}
HEAVY = {"torch", "ray", "vllm", "megatron", "transformers"}
LIGHT = FLOORS[0] | {"plan", "doctor"}
"""Rooms that load none of these."""
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=str)
def test_imports_go_down(path):
    for name in imports(path):
        top, *rest = name.split(".")
        assert room(path) in ONLY_IN.get(top, {room(path)}), f"{path} imports {name}"
        if top == "megatron_nft" and rest and rest[0] != room(path):
            may_meet = {rest[0], room(path)} <= FLOORS[0] | DRIVERS
            assert floor(rest[0]) < floor(room(path)) or may_meet, (
                f"{path} (floor {floor(room(path))}) imports {name} (floor {floor(rest[0])})"
            )


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LIGHT], ids=str)
def test_light_rooms_import_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=str)
def test_the_checkpoint_tools_use_weights_and_actor(path):
    """They need no launch: no Ray, no engine, no driver, and no Megatron but through the actor."""
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in {"ray", "vllm", "megatron", "transformer_engine", "launch", "tests"}, f"{path} imports {name}"
        if top == "megatron_nft":
            assert rest[0] in {"config", "families", "checkpoint_folder", "weights", "actor"}, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_imports_the_tools(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"checkpoint_tools", "launch", "tests", "benchmarks"}


def test_every_room_has_its_floor():
    assert {room(p) for p in FILES if p.name != "__init__.py"} == set().union(*FLOORS)
