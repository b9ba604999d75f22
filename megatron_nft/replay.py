"""Runs kept training batches again on the actor alone: same loss, same gradients, no engines, no sampling.

    megatron-nft replay runs/NAME/recipe.toml --step 7 actor.tp=1

goes back to the run's last checkpoint before step 7 (or to its start), trains on the stored batches
up to that of step 7, and compares what comes of it with what the run recorded.
`megatron-nft train RECIPE --replay 7` is the same.

    megatron-nft replay runs/NAME/recipe.toml runs/NAME/batches/step_3.npz

scores one batch with model.path, compares that with the stored old log-probs, trains the updates one
by one from a new optimizer, and says which answers have to do with a number that is not finite.

Batches are kept with observe.save_batches = true, and always when an update was not finite (then
runs/NAME/nonfinite/step_N/batch.npz, with the weights that it met in hf/, to be given as model.path).
Any layout: actor.tp=1 does on one process.

Exit status: 0 all updates were finite (with --step: and all numbers as recorded), 1 they were not, or
a process failed, 2 wrong input.
"""

import argparse
import sys
from collections.abc import Sequence

from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import RecipeError, load_config, path_argument
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.observe.batches import BatchError, load_batch, step_of_batch
from megatron_nft.run.replay import replay, replay_step


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="the run's recipe.toml")
    parser.add_argument("--step", type=int, metavar="N", help="a step of the run, to be compared with what it recorded")
    parser.add_argument("rest", nargs="*", metavar="BATCH | section.key=value",
                        help="without --step: a batch.npz or step_N.npz that the run kept; and settings that override "
                        "the recipe")  # fmt: skip
    arguments = parser.parse_intermixed_args(argv)
    batch = None if arguments.step is not None else next(iter(arguments.rest), None)
    if arguments.step is None and batch is None:
        parser.error("give a batch, or --step")
    overrides = arguments.rest if batch is None else arguments.rest[1:]
    try:
        config = load_config(arguments.recipe, [*overrides, "optimizer.skip_nonfinite=true"])
        if batch is None:
            return 0 if replay_step(config, arguments.step) else 1
        path = path_argument(batch)
        return 1 if replay(config, load_batch(path), step_of_batch(path)) else 0
    except (ClusterError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, BatchError, argparse.ArgumentTypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
