"""Groups to train on: prompts -> rollouts -> verdicts, round after round, until enough have right and wrong answers.

Called by train.py once a step. What it knows between steps goes into the checkpoint.
"""

from math import ceil
from typing import Any

from megatron_nft.config import Config
from megatron_nft.data.prompts import PromptStream
from megatron_nft.nft.groups import check_scores, keep_mixed
from megatron_nft.observe.report import Report
from megatron_nft.rollout.api import Sampling, sample_groups, sampling_seed
from megatron_nft.types import RolloutGroup
from megatron_nft.verdict.judge import Judge

MIN_MIXED_SHARE = 0.25
"""A sampling round asks for at most 4 prompts per missing group, however few were mixed in the one before."""


class NoMixedGroups(RuntimeError):
    """Sampling did not bring enough groups with right and wrong answers."""


class GroupSampler:
    """A run's source of mixed groups."""

    def __init__(self, config: Config, prompts: PromptStream, engines: Any, judge: Judge, report: Report) -> None:
        self._config, self._prompts, self._engines, self._judge = config, prompts, engines, judge
        self._report = report
        self._mixed_share = 1.0  # of the groups sampled last: how many prompts the next round must ask for

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which a sampler of the same prompts goes on. Mixed groups that a step had no use for are
        dropped (the next step's policy is another), so there is no other leftover."""
        return {"mixed_share": self._mixed_share, "prompts": self._prompts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved sampler stopped. Raises DataError if the state belongs to other prompts."""
        self._prompts.load_state_dict(state["prompts"])
        self._mixed_share = state["mixed_share"]

    def sample(self, step: int) -> list[RolloutGroup]:
        """train.groups_per_step mixed groups.

        Raises:
            NoMixedGroups: not enough after rollout.max_sampling_rounds rounds.
        """
        config, report, rollout = self._config, self._report, self._config.rollout
        mixed: list[RolloutGroup] = []
        num_sampled, wanted = 0, config.train.groups_per_step
        for sampling_round in range(rollout.max_sampling_rounds):
            prompts = self._prompts.take(ceil((wanted - len(mixed)) / self._mixed_share))
            sampling = Sampling(
                group_size=rollout.group_size,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                max_answer_tokens=rollout.max_answer_tokens,
                seed=sampling_seed(config.run.seed, step, sampling_round),
            )
            with report.stage("rollout", total=len(prompts), unit="prompts") as progress:
                groups = sample_groups(self._engines, prompts, sampling, progress.update)
            with report.stage("verdict", total=len(prompts) * rollout.group_size, unit="answers") as progress:
                groups = self._judge.judge(groups, progress.update)
            check_scores(groups, config.algorithm)
            report.add_rollouts(groups)
            mixed += keep_mixed(groups)
            num_sampled += len(groups)
            self._mixed_share = max(len(mixed) / num_sampled, MIN_MIXED_SHARE)
            if len(mixed) >= wanted:
                report.add({"rollout/rounds": sampling_round + 1, "rollout/groups_surplus": len(mixed) - wanted})
                return mixed[:wanted]
        raise no_mixed_groups(step, len(mixed), num_sampled, wanted, rollout.max_sampling_rounds)


def no_mixed_groups(step: int, num_mixed: int, num_sampled: int, wanted: int, rounds: int) -> NoMixedGroups:
    """The error, with what to do about it."""
    return NoMixedGroups(
        f"step {step}: {num_mixed} of {num_sampled} groups had right and wrong answers after {rounds} rounds, "
        f"train.groups_per_step = {wanted} are needed; use prompts of another difficulty, a larger rollout.group_size, "
        "or raise rollout.max_sampling_rounds"
    )
