"""The command line of the drivers (train.py, train_async.py): arguments, and errors as one line and an exit status."""

import argparse
import errno
import signal
import sys
from collections.abc import Callable, Sequence

from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import Config, RecipeError, add_overrides, load_config
from megatron_nft.config.methods import SFT
from megatron_nft.data.prompts import DataError
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.nft.groups import ScoreError
from megatron_nft.observe.batches import BatchError
from megatron_nft.observe.owner import OwnerLost
from megatron_nft.rollout.api import EngineError
from megatron_nft.run.around import TryAgain
from megatron_nft.run.canary import CanaryError
from megatron_nft.run.gap_alarm import GapTooLarge
from megatron_nft.run.nonfinite import NonFiniteUpdate
from megatron_nft.run.private import keep_private
from megatron_nft.run.replay import replay_step
from megatron_nft.run.run import Run, run_recipe
from megatron_nft.run.stop import Stop, StopRequested
from megatron_nft.verdict.pool import JudgeError

INTERRUPTED, GO_ON = 130, 75
"""Exit status: the shell's of Ctrl-C; sysexits' EX_TEMPFAIL, by which a batch script knows that it is to requeue."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
"""Of errors of the system, those that are a disk's, and no fault of this program."""

HELP = """
    {prog} launch/recipes/quickstart.toml                      two CPU cores, a few minutes
    {prog} my.toml actor.tp=2 actor.dp=2 rollout.engines=4     with other settings than the recipe's

A run's files are in run.dir/run.name; report.html is the page to look at. A run that was stopped goes
on from its last checkpoint when the same command is given again; run.overwrite=all deletes it and
begins anew. Ctrl-C ends it without saving; SIGTERM, SIGUSR1 and an error save the last whole step.
`megatron-nft doctor RECIPE` looks before a run whether this machine is fit, `megatron-nft plan RECIPE`
whether the recipe fits.

Exit status: 0 done, 1 failed, 2 wrong recipe or data, or a folder in use, 75 give the same command
again (stopped by SIGUSR1, or processes were lost too often, and something has been saved), 130 interrupted.
"""


def main(
    steps: Callable[[Run, Stop], None],
    command: str,
    summary: str,
    argv: Sequence[str] | None = None,
    *,
    is_ahead: bool = False,
) -> int:
    """The command line of `megatron-nft COMMAND`, which is said in `summary`; returns the exit status.

    Args:
        steps: the loop.
        is_ahead: sampling may be ahead of training, by rollout.max_staleness steps.
    """
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
    add_overrides(parser)
    arguments = parser.parse_intermixed_args(argv)

    def act() -> bool:
        config = load_config(arguments.recipe, arguments.overrides)
        if config.algorithm.name == SFT:
            raise RecipeError(f'algorithm.name = "{SFT}" learns given answers, and samples none: megatron-nft sft')
        if found := list(config.gap_problems(is_ahead=is_ahead and max_staleness(config) > 0)):
            raise RecipeError("\n".join(found))
        keep_private(config)
        if arguments.replay is not None:
            return replay_step(config, arguments.replay)
        run_recipe(config, steps, max_staleness=max_staleness(config) if is_ahead else 0)
        return True

    return exit_status(act)


def exit_status(act: Callable[[], bool]) -> int:
    """Of a command: what it does, with its errors as one line; false: it has failed, and said so."""
    try:
        return 0 if act() else 1
    except StopRequested as request:
        goes_on = "goes on from the last checkpoint" if request.goes_on else "would train again what wasn't saved"
        print(f"interrupted by {request}; the same command {goes_on}", file=sys.stderr)
        return GO_ON if request.number == signal.SIGUSR1 and request.goes_on else INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except TryAgain as error:
        print(f"error: {error}; the same command goes on from the last checkpoint", file=sys.stderr)
        return GO_ON
    except (
        ClusterError,
        EngineError,
        JudgeError,
        CanaryError,
        CheckpointError,
        NoMixedGroups,
        NonFiniteUpdate,
        GapTooLarge,
        OwnerLost,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, DataError, BatchError, ScoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"error: {error}; make room, and give the same command again", file=sys.stderr)
        return 1


def max_staleness(config: Config) -> int:
    """Steps by which an asynchronous run's sampling may be ahead.

    Raises:
        RecipeError: engines and actor share their GPUs.
    """
    if config.rollout.max_staleness and config.is_colocated:
        raise RecipeError(
            'cluster.placement = "colocated": engines and actor take turns on their GPUs, so neither can be ahead; set '
            '"split", or use megatron_nft.train'
        )
    return config.rollout.max_staleness
