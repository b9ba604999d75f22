"""A step's rollouts on all engines: the round that is asked for, a second one, and what goes on without rounds.

All engines share one queue, so that each does its share; answers of all lengths are evenly mixed. Called by times.py,
evaluation.py and planner.py.
"""

from math import ceil

from megatron_nft.config import Config
from megatron_nft.plan.engine import Engine, Round, play_round, without_tail
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.workload import Workload


def rollout_round(
    config: Config, work: Workload, engine: Engine, machine: Machine, places: int, more: int = 0
) -> Round:
    """The first round of a step, on the engine with most to do.

    Args:
        more: answers to other prompts that go with it, over all engines.
    """
    engines, group = config.rollout.engines, config.rollout.group_size
    return play_round(
        engine,
        machine,
        answers=ceil((work.rounds.first * group + more) / engines),
        prompts=(work.rounds.first + more) / engines,
        prompt_tokens=work.prompt_tokens,
        lengths=work.lengths,
        places=places,
    )


def second_round(config: Config, work: Workload, engine: Engine, machine: Machine, places: int) -> Round:
    """Of few prompts, spread over the engines; among so many answers one is as long as allowed, or nearly."""
    answers = work.rounds.second * config.rollout.group_size
    longest = work.lengths[min(len(work.lengths) - 1, int(len(work.lengths) * (1 - 1 / (answers + 1))))]
    return play_round(
        engine,
        machine,
        answers=ceil(answers / config.rollout.engines),
        prompts=ceil(work.rounds.second / config.rollout.engines),
        prompt_tokens=work.prompt_tokens,
        lengths=(longest,),
        places=places,
    )


def steady_rollout_s(config: Config, work: Workload, engine: Engine, machine: Machine, places: int) -> float:
    """Of an asynchronous step's answers, on engines that go on with the next step's: no margin, no tail."""
    prompts = config.train.groups_per_step / work.mixed_share / config.rollout.engines
    return without_tail(
        engine,
        machine,
        answers=ceil(prompts * config.rollout.group_size),
        prompts=prompts,
        prompt_tokens=work.prompt_tokens,
        lengths=work.lengths,
        places=places,
    )
