"""How old groups are, in policies: those whose tokens a step trains on may have been sampled by earlier ones."""

from collections.abc import Sequence

import numpy as np

from megatron_nft.types import RolloutGroup


def oldest_version(group: RolloutGroup) -> int:
    """Of the policy that sampled the group's oldest token."""
    return min(rollout.policy_version for rollout in group.rollouts)


def staleness_metrics(groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
    """How far behind the policy that step `step` trains (step - 1) those were that sampled its answer tokens."""
    staleness = np.concatenate([step - 1 - rollout.policy_versions_A for group in groups for rollout in group.rollouts])
    return {
        "async/staleness_mean": float(staleness.mean()),
        "async/staleness_max": int(staleness.max()),
        "async/groups_carried": sum(any(rollout.newer_versions for rollout in group.rollouts) for group in groups),
    }
