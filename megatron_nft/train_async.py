"""The same run (train.py) with engines that never wait for the trainer, nor the trainer for a long answer.

    python -m megatron_nft.train_async launch/recipes/quickstart.toml [rollout.max_staleness=2 section.key=value ...]

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

from megatron_nft.run.command_line import main
from megatron_nft.train import train

if __name__ == "__main__":
    sys.exit(main(train, "megatron_nft.train_async", is_ahead=True))
