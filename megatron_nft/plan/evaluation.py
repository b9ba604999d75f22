"""Held-out evaluation: how many answers, what they cost beside a step's rollouts, and alone.

Answers of all benchmarks, greedy and sampled, go into one queue. In a run on shared devices that is the queue of the
next step's rollouts, whose engines hold the same weights: the evaluation has no tail of its own, only the time of its
tokens. Where engines have devices of their own it may run while the actor trains. After the last step it is alone.
"""

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

from megatron_nft.config import Config
from megatron_nft.plan.engine import Engine, play_round
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.rollouts import rollout_round
from megatron_nft.plan.workload import Workload

PROMPTS = {
    "aime24": 30, "aime_2024": 30, "aime25": 30, "aime_2025": 30, "amc23": 40, "math500": 500, "olympiad": 674,
    "olympiadbench": 674, "minerva": 272, "minerva_math": 272, "gsm8k": 1319,
}  # fmt: skip
"""Problems of published benchmarks, by the name of their file."""
DEFAULT_PROMPTS = 500
"""Of a file with another name."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One of a run."""

    prompts: int
    answers: int
    beside_s: float  # that a step takes longer for it
    alone_s: float


def plan_evaluation(
    config: Config, work: Workload, engine: Engine, machine: Machine, places: int, training_s: float
) -> Evaluation | None:
    """None: the recipe has nothing to evaluate on.

    Args:
        training_s: of scoring and training, during which engines with devices of their own would idle.
    """
    counts = {Path(file).name.partition(".")[0]: 0 for file in config.data.held_out}
    if not counts:
        return None
    settings, answers = config.evaluate, 0
    for name in counts:
        counts[name] = min(PROMPTS.get(name, DEFAULT_PROMPTS), settings.max_prompts or inf)
        answers += counts[name] * (settings.samples_of.get(name, settings.samples) + settings.greedy)
    prompts, engines = sum(counts.values()), config.rollout.engines
    alone = play_round(
        engine,
        machine,
        answers=ceil(answers / engines),
        prompts=prompts / engines,
        prompt_tokens=work.prompt_tokens,
        lengths=work.lengths,
        places=places,
    ).seconds
    if not config.evaluate.in_background:
        beside = alone
    elif config.is_colocated:
        together = rollout_round(config, work, engine, machine, places, more=answers).seconds
        beside = max(together - rollout_round(config, work, engine, machine, places).seconds, 0.0)
    else:
        beside = max(alone - training_s, 0.0)
    return Evaluation(prompts=prompts, answers=answers, beside_s=beside, alone_s=alone)
