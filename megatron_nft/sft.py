"""Supervised training on given answers, by the actor that NFT trains with: a warm start.

    megatron-nft sft launch/quickstart/pupils.toml [section.key=value ...]

learns the answers of data.train as they are: the mean of -log pi over their tokens, which is the positive branch of
NFT's loss without a ratio. train.groups_per_step answers are a step, cut into train.updates_per_step updates in their
order. Checkpoints, stopping and going on, the run folder and its report are those of `megatron-nft train`; no engine
and no grader is started.

A row's answer is the last of its messages, if that is the assistant's, or a column response, completion,
solution or answer; its prompt is what data/README.md says. rollout.max_answer_tokens is the longest answer taken.

Exit status: 0 done, 1 failed, 2 wrong recipe or data, or a folder in use, 75 give the same command
again (stopped by SIGUSR1, and something has been saved), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from megatron_nft.config import Config, RecipeError, add_overrides, load_config
from megatron_nft.config.methods import SFT
from megatron_nft.run.command_line import exit_status
from megatron_nft.run.private import keep_private
from megatron_nft.run.supervised import run_supervised


def check(config: Config) -> Config:
    """The recipe, if it is one of given answers.

    Raises:
        RecipeError: it is a run's that samples, or asks for what only such a run has.
    """
    if config.algorithm.name != SFT:
        raise RecipeError(f'algorithm.name = "{config.algorithm.name}" learns from sampled answers; set "{SFT}"')
    if config.data.held_out:
        raise RecipeError(
            "data.held_out is for a run with engines; leave it out, and give the trained model's folder to "
            "megatron-nft evaluate"
        )
    for name, value, default in (
        ("rollout.temperature", config.rollout.temperature, 1.0),
        ("algorithm.kl_weight", config.algorithm.kl_weight, 0.0),
        ("algorithm.all corrections", len(config.algorithm.all_corrections), 0),
    ):
        if value != default:
            raise RecipeError(f"{name} = {value:g} is of sampled answers, and given ones have none; leave it out")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft sft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help='TOML file with algorithm.name = "sft"')
    add_overrides(parser)
    arguments = parser.parse_intermixed_args(argv)

    def act() -> bool:
        config = check(load_config(arguments.recipe, arguments.overrides))
        keep_private(config)
        run_supervised(config)
        return True

    return exit_status(act)


if __name__ == "__main__":
    sys.exit(main())
