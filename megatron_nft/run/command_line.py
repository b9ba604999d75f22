"""The command line of the drivers (train.py, train_async.py): arguments, and errors as one line and an exit status."""

import argparse
import signal
import sys

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.prompts import DataError
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.groups.sampling import NoMixedGroups
from megatron_nft.nft.groups import ScoreError
from megatron_nft.observe.batches import BatchError
from megatron_nft.replay import replay_step
from megatron_nft.rollout.vllm.engine import EngineError
from megatron_nft.run.canary import CanaryError
from megatron_nft.run.checkpoint_folder import CheckpointError
from megatron_nft.run.nonfinite import NonFiniteUpdate
from megatron_nft.run.stop import StopRequested
from megatron_nft.run.survival import Run, run_recipe
from megatron_nft.verdict.pool import JudgeError

INTERRUPTED, GO_ON = 130, 75
"""Exit status: the shell's of Ctrl-C; sysexits' EX_TEMPFAIL, by which a batch script knows that it is to requeue."""


def main(kind: type[Run], program: str) -> int:
    """The command line; exit status 0 done, 1 failed, 2 wrong recipe or data, 75 stopped by SIGUSR1 (run it again: it
    goes on from its checkpoint), 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description="Trains a language model with NFT from its own right and wrong answers.",
        epilog=f"example: python -m {program} launch/recipes/quickstart.toml actor.tp=1 actor.pp=2 run.seed=2",
    )
    parser.add_argument("recipe", help="TOML file; every setting and its default is in megatron_nft/config.py")
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="train again on a stored step; see megatron_nft.replay"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the recipe")
    arguments = parser.parse_intermixed_args()
    try:
        config = load_config(arguments.recipe, arguments.overrides)
        if arguments.replay is not None:
            return 0 if replay_step(config, arguments.replay) else 1
        run_recipe(config, kind)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except StopRequested as request:
        print(f"interrupted by {request}; the same command goes on from the last checkpoint", file=sys.stderr)
        return GO_ON if request.number == signal.SIGUSR1 else INTERRUPTED
    except (
        ClusterError,
        EngineError,
        JudgeError,
        CanaryError,
        CheckpointError,
        NoMixedGroups,
        NonFiniteUpdate,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, DataError, BatchError, ScoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
