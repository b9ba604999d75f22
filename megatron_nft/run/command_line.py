"""The command line of the drivers (train.py, train_async.py): arguments, and errors as one line and an exit status."""

import argparse
import signal
import sys
from collections.abc import Sequence

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.prompts import DataError
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.groups.sampling import NoMixedGroups
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


HELP = """
    {prog} launch/recipes/quickstart.toml                      two CPU cores, a few minutes
    {prog} my.toml actor.tp=2 actor.dp=2 rollout.engines=4     with other settings than the recipe's

A run's files are in run.dir/run.name; report.html is the page to look at. A run that was stopped goes
on from its last checkpoint when the same command is given again; run.overwrite=true begins anew.
Ctrl-C ends it without saving; SIGTERM saves the last whole step, and so does SIGUSR1.
`megatron-nft doctor RECIPE` looks before a run whether this machine is fit, `megatron-nft plan RECIPE`
whether the recipe fits.

Exit status: 0 done, 1 failed, 2 wrong recipe or data, 75 stopped by SIGUSR1 (give the same command
again), 130 interrupted.
"""


def main(kind: type[Run], command: str, summary: str, argv: Sequence[str] | None = None) -> int:
    """The command line of `megatron-nft COMMAND`, which is said in `summary`; returns the exit status."""
    prog = f"megatron-nft {command}"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{summary}\n{HELP.format(prog=prog)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="TOML file; `megatron-nft config` prints every setting and its default")
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="train again on a stored step; see megatron-nft replay"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the recipe")
    arguments = parser.parse_intermixed_args(argv)
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
    except (RecipeError, ModelFolderError, DataError, BatchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
