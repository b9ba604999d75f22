"""Writes a recipe for a model, data and the GPUs at hand: commented, and one that the planner says fits.

    megatron-nft init --model models/Qwen2.5-Math-7B --data train.jsonl --held-out test.jsonl
    megatron-nft init --model models/Qwen2.5-Math-7B --gpus 8 --out my.toml        data to be named later
    megatron-nft init --model tests/assets/quickstart/model --data my.jsonl --gpus 0        two CPU cores

Of the model config.json is enough, the tokenizer and the data are read if they are there: prompts are
counted, and what is wrong with a row is said now. Actor and engines share the GPUs; of the layouts that
fit and leave 15% of a GPU's memory free it is the one that is planned to be the fastest, but context
parallelism has to be faster by 10%, and an optimizer on the host is the last resort. Then:
megatron-nft train RECIPE. Outside the repository, in which jobs start, the recipe's paths are absolute.

Exit status: 0 written, 1 no layout fits, 2 wrong arguments, model or data.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_nft.config import RecipeError, load_config, path_argument
from megatron_nft.data.errors import DataError
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.init.choose import ROOM, Given, choose, fullness
from megatron_nft.init.machine import hardware_at_hand
from megatron_nft.init.prompts import measure
from megatron_nft.init.text import recipe_text
from megatron_nft.plan.hardware import GIB, HardwareError, load_machine
from megatron_nft.plan.planner import Plan, make_plan

PLACEHOLDER = "data/dapo-math-17k.parquet"
REPOSITORY = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = _parser().parse_args(argv)
    try:
        return _init(arguments)
    except (RecipeError, ModelFolderError, DataError, HardwareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _init(arguments: argparse.Namespace) -> int:
    found, kind = hardware_at_hand()
    gpus = found if arguments.gpus is None else arguments.gpus
    model = arguments.model.parent if arguments.model.name == "config.json" else arguments.model
    out = arguments.out
    if gpus < 0:
        raise RecipeError(f"--gpus {gpus}; give the number of GPUs, 0 for a CPU")
    if out.exists() and not arguments.force:
        raise RecipeError(f"{out} is there already; give --out another name, or --force")
    hf, machine = read_hf_config(model), load_machine("cpu" if gpus == 0 else arguments.hardware or kind)
    data = arguments.data or [PLACEHOLDER]
    given = Given(
        model=_from_anywhere(str(model)),
        data=tuple(_from_anywhere(each) for each in data),
        held_out=tuple(_from_anywhere(each) for each in arguments.held_out),
        gpus=gpus,
        name=arguments.name or out.stem,
        prompts=measure(model, arguments.data, arguments.held_out) if arguments.data else None,
    )
    chosen = choose(given, hf, machine)
    if chosen.problems:
        print("error: no layout fits:", *chosen.problems, sep="\n  ", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(recipe_text(given, chosen), encoding="utf-8")
    config = load_config(out, checks_weights=False)  # as training will
    for line in _told(given, make_plan(config, hf, machine), out):
        print(line)
    return 0


def _told(given: Given, plan: Plan, out: Path) -> list[str]:
    config, prompts = plan.config, given.prompts
    fullest = max(plan.memory.usages, key=lambda usage: usage.total / usage.limit)
    devices = f"{given.gpus} x {plan.machine.name}" if given.gpus else "CPU"
    rows = f"none given: {PLACEHOLDER}"
    if prompts:
        rows = f"{prompts.count:,} prompts, the longest of {prompts.longest:,} tokens"
    size = sum(rank.elements for rank in plan.ranks) * config.actor.tp / 1e9
    engines = f"{config.rollout.engines} engine{'s' if config.rollout.engines > 1 else ''} of tp {config.rollout.tp}"
    return [
        f"model: {given.model}, {size:.3g} B parameters | data: {rows}",
        f"wrote {out}: {devices}, actor {config.actor.layout}, {engines}",
        f"plan: fits, {fullest.total / GIB:.1f} of {fullest.limit / GIB:.1f} GiB at the fullest ({fullest.phase}); "
        f"{plan.seconds:.0f} s a step, {config.train.steps} steps {plan.whole_run.hours:.1f} h (planned, not measured)",
        *_crowded(given, plan),
        f"next: {_next(given, plan, out)}",
    ]


def _crowded(given: Given, plan: Plan) -> list[str]:
    if not given.gpus or fullness(plan) <= ROOM:
        return []
    return [
        f"little room: {100 * fullness(plan):.0f}% of the fullest GPU, and no layout of {given.gpus} leaves "
        f"{100 * (1 - ROOM):.0f}% free; if memory runs out, lower actor.tokens_per_microbatch, or take more GPUs"
    ]


def _next(given: Given, plan: Plan, out: Path) -> str:
    """From the folder that the user is in; scripts go to the repository's first."""
    is_here = Path.cwd() == REPOSITORY
    if given.gpus > plan.machine.gpus_per_node:
        guide, recipe = ("slurm/README.md", out) if is_here else (REPOSITORY / "slurm/README.md", out.absolute())
        return f"{guide}, and there NFT_RECIPE={recipe}"
    if given.gpus and is_here:
        return f"launch/train.sh {out}"
    quoted = shlex.quote(str(out))
    train = f"megatron-nft train {quoted}"
    return f"megatron-nft doctor {quoted} && {train}" if given.gpus else train


def _from_anywhere(path: str) -> str:
    """A path as the recipe has it: jobs are started in the repository's folder, wherever this command was."""
    full = Path(path).absolute()
    return str(full) if full.exists() and Path.cwd() != REPOSITORY else path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-nft init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, type=path_argument, metavar="DIR", help="HF folder, or its config.json"
    )
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="FILE", help="to train on: parquet, jsonl, csv, hub name"
    )
    parser.add_argument("--held-out", nargs="+", default=[], metavar="FILE", help="to evaluate on; none: no evaluation")
    parser.add_argument("--gpus", type=int, metavar="N", help="default: those of this machine; 0: a CPU")
    parser.add_argument("--hardware", metavar="NAME", help="H100, H200, A100, B200 (default: this machine's, or H100)")
    parser.add_argument("--out", type=path_argument, default=Path("recipe.toml"), help="default: %(default)s")
    parser.add_argument("--name", help="of the run (default: the recipe's)")
    parser.add_argument("--force", action="store_true", help="replace a recipe that is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
