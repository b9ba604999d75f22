"""What came of a step's prompts, in words, and what may help: for a run that ends for want of groups that teach."""

from collections.abc import Sequence

from megatron_nft.types import RolloutGroup


def outcome(groups: Sequence[RolloutGroup]) -> str:
    """What their answers looked like."""
    all_right = sum(group.correct_rate == 1 for group in groups)
    cut = _share([rollout.truncated for group in groups for rollout in group.rollouts])
    unparsable = _share([verdict.kind == "unparsable" for group in groups for verdict in group.verdicts])
    ungraded = _share_without_verdict(groups)
    more = f", {ungraded:.0%} without a verdict (timeouts, errors)" if ungraded else ""
    return (
        f"of {len(groups)} groups {all_right} were all right; of their answers {cut:.0%} were cut off, "
        f"{unparsable:.0%} unparsable{more}"
    )


def remedy(groups: Sequence[RolloutGroup]) -> str:
    """What to try, besides more rounds."""
    first = "see first to the graders (verdict.deadline_s, verdict.memory_gib, graders of your own); "
    broken = _share_without_verdict(groups) > 0.5
    return f"{first if broken else ''}use prompts of another difficulty, a larger rollout.group_size"


def _share_without_verdict(groups: Sequence[RolloutGroup]) -> float:
    return _share([not verdict.is_graded for group in groups for verdict in group.verdicts])


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / max(len(marks), 1)
