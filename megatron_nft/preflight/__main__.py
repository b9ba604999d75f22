"""Are the job's nodes fit for this run? One table, bad nodes by name, before anything heavy starts.

    RAY_ADDRESS=node01:6379 megatron-nft preflight my.toml actor.tp=8
    megatron-nft preflight my.toml --nodes node01,node02 --wait 300 --within 300 --between 40

Joins the Ray at RAY_ADDRESS, waits until the nodes named have joined, too, and asks each: doctor's
checks, versions, recipe, model and data, room, GPUs, clock, grading; then measures all-reduce within
and between nodes. slurm/common.sh runs it at the start of every attempt.

Exit status: 0, or 1 if a check FAILs.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_nft.cluster.nodes import ClusterError, Node, Processes, joined, living_nodes, wait_for_nodes
from megatron_nft.cluster.placement import check_room as check_job
from megatron_nft.config import Config, RecipeError, add_overrides, load_config
from megatron_nft.doctor.__main__ import render
from megatron_nft.doctor.findings import Finding, fail, ok
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.preflight import bandwidth, checks
from megatron_nft.preflight.facts import Facts, gather_facts

FACTS_WITHIN_S, BANDWIDTH_WITHIN_S = 60.0, 90.0
"""Longest waits; a file system that hangs must not hang this."""


class Preflight:
    """The checks, in their order; each may need what the ones before it have found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.start = arguments, time.monotonic()

    def findings(self) -> Iterator[Finding]:
        """Rows as they are found; ends after a FAIL that makes the rest pointless."""
        arguments = self.arguments
        names = [name for name in arguments.nodes.split(",") if name]
        missing = wait_for_nodes(names, arguments.wait, lambda words: print(words, flush=True), ray_errors)
        nodes = [node for node in living_nodes() if not names or node.name in names]
        errors = ray_errors()
        for name in missing:
            yield fail(
                "nodes",
                f"{name} has not joined Ray",
                errors.get(name) or f"{len(nodes)} of {len(names)} have, within {arguments.wait:g} s",
                f"look at {os.environ.get('NFT_LOG', 'the log folder')}/{name}/ray_start.log and ../ray.log, or leave "
                f"it out: sbatch --exclude={name}",
            )
        if missing:
            return
        yield ok("nodes", f"{len(nodes)} have joined Ray: {checks.short([node.name for node in nodes])}")
        processes = Processes(nodes)
        facts = yield from self.facts(nodes, processes)
        if len(facts) < len(nodes):
            return
        yield from checks.check_machines(facts, pins=arguments.pins)
        yield from checks.check_same(facts)
        yield from checks.check_room(facts)
        yield from checks.check_verdicts(facts)
        try:
            config = load_config(arguments.recipe, arguments.overrides)
        except (RecipeError, ModelFolderError) as error:
            yield fail("recipe", arguments.recipe, str(error), "mend the recipe, or override the setting")
            return
        note_run_folder(config)
        if config.cluster.device == "cuda":
            yield from checks.check_gpus({node.name: node.gpus for node in nodes}, facts)
        try:
            check_job(config, nodes, config.actor.world_size)
            yield ok(
                "room for all", f"{config.actor.layout}, {config.rollout.engines} engines of tp {config.rollout.tp}"
            )
        except ClusterError as error:
            yield fail("room for all", config.actor.layout, str(error), "see above")
        yield from self.bandwidths(nodes, processes, config)

    def facts(self, nodes: list[Node], processes: Processes) -> Iterator[Finding]:
        """Returns each node's facts; rows of those that gave none."""
        answers = processes.call(
            gather_facts, [(self.arguments.recipe, self.arguments.overrides)] * len(nodes), FACTS_WITHIN_S
        )
        facts: dict[str, Facts] = {}
        for node, answer in zip(nodes, answers, strict=True):
            if answer.error:
                yield checks.attempt("machines", node.name, answer.error)
            else:
                facts[node.name] = answer.value
        if len(facts) == len(nodes):
            offsets = dict(zip(facts, processes.clock_offsets(), strict=True))
            yield from checks.check_clocks(offsets)
        return facts

    def bandwidths(self, nodes: list[Node], processes: Processes, config: Config) -> Iterator[Finding]:
        """All-reduce, by one process a GPU; on CPUs by the nodes' own `processes`: to start others takes time."""
        is_cuda = config.cluster.device == "cuda"
        places = [index for index, node in enumerate(nodes) for _ in range(node.gpus if is_cuda else 1)]
        if len(places) < 2:
            yield ok("bandwidth", "one rank: nothing to measure")
            return
        if is_cuda:
            processes.end()
            processes = Processes([nodes[index] for index in places], gpus=1)
        (master, *_) = processes.call(
            bandwidth.open_port, [(nodes[index].address,) for index in places], BANDWIDTH_WITHIN_S
        )
        arguments = [(master.value, rank, places) for rank in range(len(places))]
        answers = processes.call(bandwidth.measure, arguments, BANDWIDTH_WITHIN_S)
        processes.end()
        errors = {nodes[index].name: a.error for index, a in zip(places, answers, strict=True) if a.error}
        for name, error in errors.items():
            yield checks.attempt("bandwidth", name, error)
        if not errors:
            measured = {nodes[index].name: a.value for index, a in zip(places, answers, strict=True)}
            yield from checks.check_bandwidth(
                measured, within_gb_s=self.arguments.within, between_gb_s=self.arguments.between
            )


def ray_errors() -> dict[str, str]:
    """Nodes on which slurm/ray_node.sh has given up, and its words: lines "NODE: error: ..." of the job's ray.log."""
    log = Path(os.environ.get("NFT_LOG", "")) / "ray.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    found = [re.fullmatch(r"(\S+): error: (.*)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def note_run_folder(config: Config) -> None:
    """For slurm/attempts.sh, which looks there whether an attempt has brought a further checkpoint."""
    if log := os.environ.get("NFT_LOG"):
        (Path(log) / "run_folder").write_text(f"{config.run_dir.absolute()}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="TOML file")
    add_overrides(parser)
    parser.add_argument(
        "--nodes", default="", metavar="N1,N2", help="names of those that must have joined, separated by commas"
    )
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="seconds to wait for them")
    parser.add_argument(
        "--pins", choices=("fail", "warn"), default="fail", help="what other versions than pinned are (default: fail)"
    )
    parser.add_argument("--within", type=float, default=0.0, metavar="GB/s", help="all-reduce expected inside a node")
    parser.add_argument(
        "--between", type=float, default=0.0, metavar="GB/s", help="all-reduce expected between two nodes"
    )
    parser.add_argument("--json", action="store_true", help="a list of findings, for programs")
    preflight = Preflight(parser.parse_intermixed_args(argv))
    head = preflight.arguments.nodes.split(",")[0]
    try:
        with joined(preflight.arguments.wait, lambda: ray_errors().get(head, "")):
            findings = list(preflight.findings())
    except ConnectionError as error:
        print(f"error: {error}; slurm/common.sh starts one and sets it; by hand: `ray start --head`", file=sys.stderr)
        return 1
    if preflight.arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(
            render(findings).replace("\ndoctor: ", "\npreflight: ") + f" in {time.monotonic() - preflight.start:.0f} s"
        )
    return int(any(finding.status == "FAIL" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
