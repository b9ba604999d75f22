"""The house as it is meant: imports only go down, light rooms stay light, files are short, the root has the commands.

The tables come first; a room that moves is a word moved there. A claim is one test, and says all that break it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE, TOOLS = Path("megatron_nft"), Path("checkpoint_tools")

FLOORS = [
    {"families", "types"},
    {"config"},
    {"observe"},
    {"weights", "nft", "data", "verdict", "plan", "doctor", "evaluation"},
    {"actor", "rollout"},
    {"cluster"},
    {"groups"},
    {"run"},
    {"train", "train_async", "sft", "evaluate", "smoke", "replay", "report", "preflight", "init", "__main__"},
]
"""From the ground up. A module of a room may stand on another floor than its room."""
MAY_MEET = [{"train", "train_async"}, {"doctor", "plan"}, {"doctor", "data"}, {"verdict", "data"}]
"""Those of one floor that may import each other; all others see the floors below and their own room only."""
ONLY_IN = {"ray": {"cluster"}, "megatron": {"actor"}, "transformer_engine": {"actor"}, "vllm": {"rollout"}}
HEAVY = {"torch", "ray", "vllm", "megatron", "transformers"}
LIGHT = {"families", "types", "config", "observe", "plan", "doctor"}
"""Load none of HEAVY."""
FOR_THE_TOOLS = {"config", "families", "weights", "actor"}
"""What checkpoint_tools may use: no Ray, no engine, no driver, and no Megatron but through the actor."""
COMMANDS = {"train", "train_async", "sft", "evaluate", "replay", "report"}
"""Files of the package's root that are run; beside them lie at most MAX_OTHERS (types.py, __init__.py ...)."""
MAX_OTHERS, MAX_LINES, MAX_FUNCTION_LINES = 3, 350, 70

LONG_FILES: set[str] = set()
"""Files that are too long for a reason: data tables; none that is short."""

FILES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})
SOURCES = sorted(
    path
    for folder in ("megatron_nft", "checkpoint_tools", "launch", "slurm", "tests", "benchmarks")
    for path in Path(folder).rglob("*")
    if path.suffix in (".py", ".sh", ".js", ".css", ".sbatch")
)


def place(module: str) -> str:
    """megatron_nft.run.stop -> what FLOORS calls it: run.stop, or else run."""
    parts = module.split(".")[1:3]
    exact = ".".join(parts)
    return exact if exact in set().union(*FLOORS) else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def floor(name: str) -> int:
    return next((level for level, names in enumerate(FLOORS) if name in names), -1)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(imported_names(tree_of(path)))


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here say the whole name"
            in_the_root = node.module == "megatron_nft"  # `from megatron_nft import train` names a module
            yield from (f"megatron_nft.{alias.name}" for alias in node.names) if in_the_root else (node.module,)


def goes_down(module: str, name: str) -> bool:
    """Whether a module may import what has this name."""
    top, here = name.split(".")[0], place(module)
    if top != "megatron_nft":
        return here in ONLY_IN.get(top, {here})
    there = place(name)
    if there == here or any({here, there} <= names for names in MAY_MEET):
        return True
    return floor(there) < floor(here)


# --- The claims ------------------------------------------------------------------------------------------------------


def test_imports_go_down():
    """And Ray, Megatron, TransformerEngine and vLLM are each imported in one room."""
    assert [(str(p), name) for p in FILES for name in imports(p) if not goes_down(module_of(p), name)] == []


def test_light_rooms_import_nothing_heavy():
    light = [p for p in FILES if place(module_of(p)) in LIGHT]
    assert len(light) > 20
    assert [(str(p), name) for p in light for name in imports(p) if name.split(".")[0] in HEAVY] == []


def test_the_checkpoint_tools_use_weights_and_actor():
    refused = {"ray", "vllm", "megatron", "transformer_engine", "launch", "tests"}
    names = [(str(p), name) for p in sorted(TOOLS.glob("*.py")) for name in imports(p)]
    assert [pair for pair in names if pair[1].split(".")[0] in refused] == []
    ours = [pair for pair in names if pair[1].startswith("megatron_nft.")]
    assert ours and [pair for pair in ours if place(pair[1]) not in FOR_THE_TOOLS] == []


def test_nothing_imports_the_tools():
    outside = {"checkpoint_tools", "launch", "tests", "benchmarks"}
    assert [(str(p), name) for p in FILES for name in imports(p) if name.split(".")[0] in outside] == []


def test_every_room_has_its_floor():
    names = set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(names), "a room stands on one floor"
    assert {place(module_of(p)) for p in FILES} == names


def test_the_root_has_the_commands_and_little_else():
    root = {p.stem for p in PACKAGE.glob("*.py")}
    assert root >= COMMANDS and len(root - COMMANDS) <= MAX_OTHERS, sorted(root - COMMANDS)
    assert [name for name in COMMANDS if "__main__" not in (PACKAGE / f"{name}.py").read_text()] == []


def test_files_are_short():
    long = {str(p) for p in SOURCES if len(p.read_text().splitlines()) > MAX_LINES}
    assert len(SOURCES) > 200 and long == LONG_FILES


def test_functions_are_short():
    functions = [
        (str(p), node.name, node.end_lineno - node.lineno + 1)
        for p in [*FILES, *TOOLS.glob("*.py")]
        for node in ast.walk(tree_of(p))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [each for each in functions if each[2] > MAX_FUNCTION_LINES] == []


def test_what_goes_up_is_noticed():
    def up(module, line):
        return [name for name in imported_names(ast.parse(line)) if not goes_down(f"megatron_nft.{module}", name)]

    assert up("weights.plan", "from megatron_nft.cluster.ranks import Actors") == ["megatron_nft.cluster.ranks"]
    assert up("nft.loss", "if True:\n    import ray.util") == ["ray.util"]
    assert up("groups.queue", "from megatron_nft import run") == ["megatron_nft.run"]
    assert up("actor.worker", "from megatron_nft.rollout.api import Engine") == ["megatron_nft.rollout.api"]
    assert up("actor.worker", "import megatron.core, megatron_nft.weights.wire, megatron_nft.types") == []
