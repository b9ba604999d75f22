"""What a recipe takes, before any device is asked for: memory, seconds, whether it fits.

    megatron-nft plan launch/recipes/quickstart.toml --suggest
    megatron-nft plan launch/recipes/quickstart.toml actor.tp=1 actor.dp=2 --answer-tokens 60
    megatron-nft plan launch/recipes/quickstart.toml cluster.device=cuda --hardware H200 --gpus 8

Of the model only config.json is read; with that of Qwen2.5-32B in a folder models/Qwen2.5-32B also

    megatron-nft plan launch/recipes/nft_qwen2.5_32b_16x8h100.toml --model models/Qwen2.5-32B --hardware H200

Memory by rank and phase, seconds by stage, what a step waits
for most, the hours of a whole run; --suggest finds layouts of as many ranks that fit, and other
engines and placements, with what asynchronous steps would take; --gpus N does so for N devices. How
it counts, and how far it is off: megatron_nft/plan/README.md.

Exit status: 0 the recipe fits, 1 it doesn't, 2 wrong recipe, model or hardware.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from megatron_nft.config import Config, RecipeError, add_overrides, load_config
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.plan.hardware import HardwareError, Machine, load_machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.report import render, render_clusters, render_suggestions
from megatron_nft.plan.suggestions import Suggestion, fastest, suggest, suggest_clusters
from megatron_nft.plan.workload import Assumptions

MIN_MIXED_SHARE = 0.001
"""Of less, a step would sample more than a thousand prompts for each that it trains on."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = _parser().parse_intermixed_args(argv)
    model = [f"model.path={json.dumps(arguments.model)}"] if arguments.model else []
    try:
        config = load_config(arguments.recipe, [*arguments.overrides, *model])
        hf = read_hf_config(config.model.path)
        machine = _machine(arguments.hardware, config.cluster.device)
        plan = make_plan(config, hf, machine, _assumptions(arguments, config))
        devices = _devices(arguments, plan)
        clusters = suggest_clusters(plan, devices) if devices else None
        if arguments.gpus is not None and (best := fastest(clusters or [])) is not None:
            plan = best.plan
        layouts = suggest(plan) if arguments.suggest and arguments.gpus is None else None
    except (RecipeError, ModelFolderError, HardwareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    fits = plan.fits and (arguments.gpus is None or bool(clusters))
    if arguments.json:
        found = {"suggestions": layouts, "clusters": clusters}
        lists = {name: [_plain(s) for s in those] for name, those in found.items() if those is not None}
        print(json.dumps(plan.to_dict() | lists | {"fits": fits}, indent=2))
        return 0 if fits else 1
    pages = [render(plan)] if arguments.gpus is None or clusters else []
    pages += [render_suggestions(layouts)] if layouts is not None else []
    pages += [render_clusters(clusters, devices)] if clusters is not None else []
    print("\n\n".join(pages))
    return 0 if fits else 1


def _devices(arguments: argparse.Namespace, plan: Plan) -> int:
    """Devices for which engines and placements are tried; 0: for none. On a CPU both are processes of one machine."""
    if arguments.gpus is None:
        return plan.num_devices if arguments.suggest and plan.config.cluster.device == "cuda" else 0
    if arguments.gpus < 1:
        raise RecipeError(f"--gpus {arguments.gpus}; give at least 1 device")
    return arguments.gpus


def _plain(suggestion: Suggestion) -> dict[str, Any]:
    plan = suggestion.plan
    return {
        "overrides": list(suggestion.changes),
        "distance": suggestion.distance,
        "seconds": plan.seconds,
        "asynchronous_seconds": plan.asynchronous and max(plan.asynchronous),
        "placement": plan.config.cluster.placement,
    }


def _machine(hardware: str | None, device: str) -> Machine:
    """--hardware: a name, or FILE:NAME, or a FILE with one table."""
    if hardware is None:
        return load_machine("cpu" if device == "cpu" else "H100")
    file, colon, name = hardware.rpartition(":")
    if colon:
        return load_machine(name, file)
    if hardware.endswith(".toml"):
        return load_machine(_only_table(Path(hardware)), hardware)
    return load_machine(hardware)


def _only_table(file: Path) -> str:
    import tomllib

    try:
        names = sorted(set(tomllib.loads(file.read_text())) - {"efficiency"})
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        return "H100"  # load_machine says what is wrong with the file
    if len(names) != 1:
        raise HardwareError(f"{file} has {len(names)} tables ({', '.join(names)}); say which: --hardware {file}:NAME")
    return names[0]


def _assumptions(arguments: argparse.Namespace, config: Config) -> Assumptions:
    share = arguments.mixed_share
    if not MIN_MIXED_SHARE <= share <= 1:
        why = "less than any run gets its steps of" if 0 < share < MIN_MIXED_SHARE else "no share"
        raise RecipeError(f"--mixed-share {share:g} is {why}; give one of {MIN_MIXED_SHARE:g} to 1")
    for name, setting, most in (
        ("answer_tokens", "rollout.max_answer_tokens", config.rollout.max_answer_tokens),
        ("prompt_tokens", "data.max_prompt_tokens", config.data.max_prompt_tokens),
    ):
        value, flag = getattr(arguments, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if not isfinite(value):
            raise RecipeError(f"{flag} {value:g} is no mean of tokens; give a number of 1 to {most:,}")
        if value < 1:
            raise RecipeError(f"{flag} {value:g}; give at least 1 token")
        if value > most:
            raise RecipeError(
                f"{flag} {value:g} is more than {setting} = {most} allows; give a mean of {most} at most, or raise that"
            )
    return Assumptions(prompt_tokens=arguments.prompt_tokens, answer_tokens=arguments.answer_tokens, mixed_share=share)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-nft plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="TOML file, as for training")
    add_overrides(parser)
    parser.add_argument("--model", metavar="DIR", help="HF folder (config.json is enough) in place of model.path")
    parser.add_argument(
        "--hardware", metavar="NAME", help="H100 (default), H200, A100, B200, cpu, or FILE.toml[:NAME] with one's own"
    )
    parser.add_argument("--answer-tokens", type=float, metavar="N", help="mean answer (default: 0.3 of the longest)")
    parser.add_argument("--prompt-tokens", type=float, metavar="N", help="mean prompt (default: 200 at most)")
    parser.add_argument(
        "--mixed-share", type=float, default=0.5, metavar="P", help="share of groups that are mixed (default: 0.5)"
    )
    parser.add_argument("--suggest", action="store_true", help="layouts, engines and placements that fit the devices")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="plan the recipe on N devices instead: the fastest that fits"
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs; bytes and seconds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
