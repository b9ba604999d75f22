"""The command line of megatron_nft.evaluate: flags, a recipe, or both -> settings, and a folder for the results.

Flags are other names of settings; what stands as section.key=value overrides both them and the recipe.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_nft.config import Config, LoraConfig, RecipeError, load_config, path_argument
from megatron_nft.families.hf_config import is_megatron_folder


def parse_arguments(description: str | None = None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of `megatron-nft evaluate`."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft evaluate",
        usage="%(prog)s [RECIPE] [--model DIR] [--data FILE ...] [--n N] [...] [section.key=value ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="RECIPE | section.key=value", help="a run's recipe; overrides"
    )
    parser.add_argument("--model", metavar="DIR", help="HF folder (model.path)")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE", help="benchmarks: files in the DAPO/verl schema (data.held_out)"
    )
    parser.add_argument("--n", type=int, help="answers per prompt (evaluate.samples)")
    parser.add_argument("--n-of", nargs="+", metavar="NAME=N", help="another n of some files (evaluate.samples_of)")
    parser.add_argument("--temperature", type=float, metavar="T", help="default 0.6 (evaluate.temperature)")
    parser.add_argument("--top-p", type=float, metavar="P", help="default 0.7 (evaluate.top_p)")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="default 512 (data.max_prompt_tokens)")
    parser.add_argument("--max-answer-tokens", type=int, metavar="N", help="default 3584 (rollout.max_answer_tokens)")
    parser.add_argument(
        "--max-prompts", type=int, metavar="N", help="of each file, the first so many (evaluate.max_prompts)"
    )
    parser.add_argument("--engines", type=int, metavar="N", help="vLLM engines (rollout.engines)")
    parser.add_argument("--tp", type=int, metavar="N", help="tensor-parallel size of an engine (rollout.tp)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU (cluster.device)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (run.seed)")
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="folder of the results; default: RUN/evaluation, or runs/evaluation/MODEL",
    )
    # A command may have flags between its settings: --n 4 evaluate.top_p=1.
    return parser.parse_intermixed_args(argv)


FLAGS = {
    "model": "model.path", "data": "data.held_out", "n": "evaluate.samples", "temperature": "evaluate.temperature",
    "top_p": "evaluate.top_p", "max_prompt_tokens": "data.max_prompt_tokens",
    "max_answer_tokens": "rollout.max_answer_tokens", "max_prompts": "evaluate.max_prompts",
    "engines": "rollout.engines", "tp": "rollout.tp", "device": "cluster.device", "seed": "run.seed",
}  # fmt: skip
"""Flag -> the setting that it stands for."""


def read_settings(arguments: argparse.Namespace) -> tuple[Config, Path]:
    """The resolved settings, and the folder of the results.

    Raises:
        RecipeError, ModelFolderError: as `load_config` does; or there is no data.
    """
    recipe, *overrides = [None, *arguments.settings]
    if overrides and "=" not in overrides[0]:
        recipe = overrides.pop(0)
    flags = {setting: getattr(arguments, flag) for flag, setting in FLAGS.items()}
    # A flag with several values takes what follows it, too.
    files, pairs = (arguments.data or [], arguments.n_of or [])
    overrides += [text for text in [*files, *pairs] if _is_setting(text)]
    flags["data.held_out"] = [file for file in files if not _is_setting(file)] or None
    if recipe is None and flags["cluster.device"] is None:
        flags["cluster.device"] = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    given = [f"{setting}={json.dumps(value)}" for setting, value in flags.items() if value is not None]
    given += _samples_of_flag([pair for pair in pairs if not _is_setting(pair)])
    config = load_config(recipe, [*given, *overrides], trains=False)
    if is_megatron_folder(config.model.path):
        raise RecipeError(
            f"model.path = {config.model.path!r} is a Megatron checkpoint; make an HF folder of it first: "
            f"python -m checkpoint_tools.megatron_to_hf --megatron {config.model.path} --out {config.model.path}_hf"
        )
    if not config.data.held_out:
        raise RecipeError("no data to evaluate on: give --data FILE ..., or set data.held_out")
    if config.lora.rank and (asked := [text for text in overrides if text.strip().startswith("lora.")]):
        raise RecipeError(
            f"{asked[0]}: the whole model in model.path answers, and no adapter is added to it; make a whole model of "
            "the adapter (a run's hf/, megatron-nft convert megatron-to-hf --base DIR, or peft's merge_and_unload), "
            "give that as model.path, and leave lora out"
        )
    if config.lora.rank:
        print(f"model: {config.model.path} as it is; the recipe's [lora] is for training", flush=True)
    default = Path("runs/evaluation") / Path(config.model.path).resolve().name
    out = arguments.out or (config.run_dir / "evaluation" if recipe else default)
    return _without_actor(config), out


def _without_actor(config: Config) -> Config:
    """Engines alone have GPUs of their own, read the whole model, and tell nobody of its experts."""
    cluster = config.cluster.model_copy(update={"placement": "split"})
    actor = config.actor.model_copy(update={"routing_replay": "off"})
    return config.model_copy(update={"cluster": cluster, "actor": actor, "lora": LoraConfig()})


def _is_setting(text: str) -> bool:
    name, equals, _ = text.partition("=")
    section, dot, _ = name.partition(".")
    return bool(equals and dot) and ("/" not in name or section in Config.model_fields)


def _samples_of_flag(pairs: Sequence[str]) -> list[str]:
    counts = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if not (name and count.isdigit()):
            raise RecipeError(f"--n-of {pair}: not of the form NAME=N, e.g. --n-of math500=1")
        counts[name] = int(count)
    inner = ", ".join(f"{json.dumps(name)} = {count}" for name, count in counts.items())
    return [f"evaluate.samples_of={{{inner}}}"] if counts else []
