"""Is this machine fit to run? One table, a row a check: value, reason, remedy.

    megatron-nft doctor                                         packages, driver, memory, disks, limits
    megatron-nft doctor launch/recipes/quickstart.toml          and the recipe's model, data and folder
    megatron-nft doctor my.toml run.dir=/scratch/runs --json

Reads files and variables, and imports neither torch nor vLLM itself. It connects to RAY_ADDRESS if there is one, and
starts processes that try TransformerEngine where that is installed, read a recipe's data, and try graders of one's own.

Exit status: 0, or 1 if a check FAILs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from megatron_nft.doctor.findings import Finding
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.packages import (
    check_apex,
    check_pins,
    check_python,
    check_transformer_engine,
    check_twice,
)
from megatron_nft.doctor.ray_needs import check_ray
from megatron_nft.doctor.recipe import check_recipe
from megatron_nft.doctor.system import (
    check_allocator,
    check_disk,
    check_driver,
    check_memory,
    check_open_files,
    check_proxy,
    check_shared_memory,
    check_threads,
)

CHECKS = (
    check_python, check_pins, check_twice, check_apex, check_transformer_engine, check_driver, check_allocator,
    check_threads, check_memory, check_shared_memory, check_disk, check_open_files, check_proxy, check_ray,
)  # fmt: skip


def examine(
    machine: Machine, recipe: str | None = None, overrides: Sequence[str] = (), starts_ray: bool = True
) -> list[Finding]:
    """All checks of a machine, and of a recipe on it.

    Args:
        starts_ray: False: asked by a process of the cluster that is to be used.
    """
    checks = [check for check in CHECKS if starts_ray or check is not check_ray]
    findings = [finding for check in checks for finding in check(machine)]
    return [*findings, *(check_recipe(machine, recipe, overrides) if recipe else ())]


def render(findings: Sequence[Finding]) -> str:
    """The table; under a row that is not ok, why, and what to do."""
    checks = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:4}  {finding.check:{checks}}  {finding.value}")
        indent = " " * (8 + checks)
        lines += [f"{indent}{line}" for line in finding.reason.splitlines()]
        lines += [f"{indent}-> {finding.remedy}"] if finding.remedy else []
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "warn", "FAIL")}
    lines.append("doctor: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", help="TOML file: check its model, data and run folder, too")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe"
    )
    parser.add_argument("--json", action="store_true", help="a list of findings, for programs")
    arguments = parser.parse_intermixed_args(argv)
    findings = examine(Machine.this_one(), arguments.recipe, arguments.overrides)
    print(json.dumps([asdict(finding) for finding in findings], indent=2) if arguments.json else render(findings))
    return int(any(finding.status == "FAIL" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
