"""A step of the 32B recipe with the real driver, on a cluster that is simulated on this machine.

    python -m benchmarks.scale.run [--gpus 16,128,512,2048] [--steps 2] [--markdown] [section.key=value ...]
    python -m benchmarks.scale.run --gpus 128 --weak ...      the batch grows with the GPUs, answers shrink

Driver, sampler, queue, graders, packing, Ray and the control of the weight sync are the run's own; ranks and engines
are played (stand_ins.py). Each size is a process of its own. README.md says how the figures are to be read.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.scale.cluster import NUM_PROMPTS, ray_with, scaled_recipe
from benchmarks.scale.table import render
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.config import Config, RecipeError
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.rollouts import steady_rollout_s
from megatron_nft.plan.workload import Assumptions
from megatron_nft.run.command_line import exit_status

SIZES = (16, 128, 512, 2048)
WEAK_GPUS = 128
"""At which --weak has the recipe's own batch and answers."""
LONGEST = 14_336
"""Answer that the recipe allows."""


def simulate(config: Config, plan: Plan) -> dict[str, Any]:
    """A run of the recipe on played ranks and engines, in this process: what it spent, stage by stage."""
    from benchmarks.scale.stand_ins import PlayedActors, PlayedEngines
    from benchmarks.scale.watch import Watch
    from megatron_nft.run.parts import Processes, begin_build
    from megatron_nft.run.run import run_recipe
    from megatron_nft.train import train

    with ExitStack() as stack:
        stack.enter_context(ray_with(gpus=config.actor.world_size, cpus=2 * config.actor.world_size + 8))
        begun = time.perf_counter()
        placement = stack.enter_context(ray_cluster(config))
        reserve_s = time.perf_counter() - begun
        actors, engines = PlayedActors(config, placement), PlayedEngines(config, placement, plan, starts_empty=True)
        processes = Processes(actors=actors, engines=engines)
        watch = Watch(actors.host, engines.host)  # they are up
        stack.callback(watch.end)
        begun = time.perf_counter()
        for pending in begin_build(processes, shared=config.is_colocated):
            pending.wait()
        build_s = time.perf_counter() - begun

        def steps(run: Any, stop: Any) -> None:
            watch.report(run.report)
            train(run, stop)

        run_recipe(config, steps, processes=processes)
        watch.close("end")
        return {
            "gpus": config.actor.world_size,
            "engines": config.rollout.engines,
            "steps": config.train.steps,
            "reserve_s": reserve_s,
            "build_s": build_s,
            "planned_s": {stage.name: stage.seconds for stage in plan.stages},
            "ideal_rollout_s": steady_rollout_s(config, plan.workload, plan.engine, plan.machine, plan.memory.places),
            "driver_bytes": watch.private_bytes,
            "store_bytes": watch.store_bytes,
            "spent": {
                step: {name: vars(spent) | {"messages": dict(spent.messages)} for name, spent in stages.items()}
                for step, stages in watch.steps.items()
            },
        }


def recipe_of(size: int, folder: Path, arguments: argparse.Namespace) -> Config:
    """The recipe on so many GPUs, as the command line wants it.

    Raises:
        RecipeError: an override is none of a recipe, or doesn't fit the size.
    """
    weak = []
    if arguments.weak:
        factor = size / WEAK_GPUS
        weak = [f"train.groups_per_step={int(512 * factor)}", f"rollout.max_answer_tokens={int(LONGEST / factor)}"]
    settings = [*weak, f"train.steps={arguments.steps}", "checkpoint.every=1", *arguments.overrides]
    return scaled_recipe(folder, size, settings, arguments.prompts)


def size_of(size: int, file: Path, arguments: argparse.Namespace) -> bool:
    """One size, in this process: its result into the file."""
    config = recipe_of(size, file.parent, arguments)
    plan = make_plan(config, read_hf_config(config.model.path), load_machine("H100"), Assumptions())
    file.write_text(json.dumps(simulate(config, plan)))
    return True


def sizes_in(text: str) -> list[int]:
    """For argparse: 16,128."""
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; give numbers of GPUs with commas between them: 16,128") from None
    if wrong := [size for size in sizes if size < 16 or size % 16]:
        raise argparse.ArgumentTypeError(f"{wrong[0]}: a replica of the recipe has 16 ranks; give multiples of 16")
    return sizes


def trouble(arguments: argparse.Namespace) -> str | None:
    """Why this can't be run, before anything starts."""
    for name in ("steps", "prompts"):
        if (number := getattr(arguments, name)) < 1:
            return f"--{name} {number}; give at least 1"
    if arguments.weak and (small := min(arguments.gpus)) < WEAK_GPUS:
        return (
            f"--weak on {small} GPUs: answers of up to {LONGEST * WEAK_GPUS // small:,} tokens don't fit its devices, "
            f"and would be played for hours; give {WEAK_GPUS} GPUs or more, or no --weak"
        )
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        return f"--json {arguments.json}: there is no folder {Path(arguments.json).parent}; make it, or name another"
    try:
        import grpc  # noqa: F401
    except ImportError:
        install = f"{sys.executable} -m pip install -r requirements-trackers.txt"
        return f"Ray's object store is asked for its bytes by grpc, which is not installed; {install}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            for size in arguments.gpus:
                recipe_of(size, Path(folder), arguments)
    except (RecipeError, ModelFolderError) as error:
        return str(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--gpus", type=sizes_in, metavar="N,N", help="sizes, a table each: 16,128,512,2048")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--weak", action="store_true", help="groups grow with the GPUs, answers get shorter")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="rows of the training file")
    parser.add_argument("--markdown", action="store_true", help="tables for a results page")
    parser.add_argument("--json", metavar="FILE", help="all that was counted, into a file")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)  # this process: the result into a file
    arguments = parser.parse_intermixed_args(argv)
    arguments.gpus = arguments.gpus or [size for size in SIZES if size >= WEAK_GPUS or not arguments.weak]
    if arguments.one:
        return exit_status(lambda: size_of(arguments.gpus[0], Path(arguments.one), arguments))
    if (why := trouble(arguments)) is not None:
        parser.error(why)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.gpus:
            file = Path(folder) / "result.json"
            command = [sys.executable, "-m", "benchmarks.scale.run", "--one", str(file), "--gpus", str(size)]
            command += ["--steps", str(arguments.steps), "--prompts", str(arguments.prompts)]
            command += ["--weak"] * arguments.weak + arguments.overrides
            if status := subprocess.run(command, stdout=sys.stderr).returncode:
                print(f"error: the run on {size} GPUs ended with exit status {status}; see above", file=sys.stderr)
                return 1
            results.append(json.loads(file.read_text()))
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(render(results, markdown=arguments.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
