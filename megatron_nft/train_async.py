"""The same run (train.py) with engines that never wait for the trainer, nor the trainer for a long answer.

    megatron-nft train-async launch/recipes/quickstart.toml [rollout.max_staleness=2 section.key=value ...]

    source of groups (groups/source.py, threads)                trainer (train.py)

    prompts -> requests on the engines                          take: waits while too few groups are ready
                  |  ^                                            |
      answers     |  | too old: dropped                           v
                  v  |                                          score, train        the engines go on meanwhile
              graders -> mixed groups ==> bounded queue ==>       |
                                                                  v
    waits while max_staleness steps' worth                      sync: the engines pause between two decode steps, take
    of groups are ready or under way                            the weights, and go on with what they have begun

A step trains on tokens that were sampled up to rollout.max_staleness weight syncs before: the loss holds its ratio to
the actor's log-probs before the step (algorithm.old_logprobs = "actor", with algorithm.importance_cap for the way from
the policy that sampled) or to that policy's own ("engine"). With max_staleness = 0 this is train.py.
"""

import sys
from collections.abc import Sequence

from megatron_nft.run import command_line
from megatron_nft.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    summary = "Trains as `megatron-nft train`, with engines that go on while the actor trains (rollout.max_staleness)."
    return command_line.main(train, "train-async", summary, argv, is_ahead=True)


if __name__ == "__main__":
    sys.exit(main())
