"""What a step has to do: how many answers, how long, in how many updates and microbatches.

Numbers come from the recipe; what it can't say (how long answers get, how many groups are mixed) is an `Assumptions`
with defaults that the command line can change. Answer lengths are a lognormal distribution cut at
rollout.max_answer_tokens, as quantiles: the same every time.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil, exp
from statistics import NormalDist

from megatron_nft.config import Config
from megatron_nft.plan.rounds import Rounds, sampling_rounds

NUM_QUANTILES = 512
DEFAULT_PROMPT_TOKENS = 200
"""About DAPO-Math-17k's mean; or the longest prompt allowed, if that is less."""
DEFAULT_ANSWER_SHARE = 0.3
"""Mean answer, as a share of the longest allowed."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a recipe doesn't say."""

    prompt_tokens: float | None = None
    """Mean prompt. None: 200, or the longest allowed."""
    answer_tokens: float | None = None
    """Mean answer. None: 0.3 of the longest allowed."""
    answer_spread: float = 0.8
    """Standard deviation of the logarithm of an answer's length, before the cut."""
    mixed_share: float = 0.5
    """Share of sampled groups that have right and wrong answers."""


@cache
def length_quantiles(mean: float, spread: float, longest: int) -> tuple[float, ...]:
    """Answer lengths in tokens, ascending: lognormal, cut at `longest`, with this mean after the cut."""
    normal = NormalDist()
    factors = [exp(spread * normal.inv_cdf((i + 0.5) / NUM_QUANTILES)) for i in range(NUM_QUANTILES)]
    mean = min(mean, 0.999 * longest)
    low, high = 0.0, longest * factors[-1] / factors[0]
    for _ in range(60):
        median = (low + high) / 2
        if sum(min(median * factor, longest) for factor in factors) / NUM_QUANTILES < mean:
            low = median
        else:
            high = median
    return tuple(min(max(median * factor, 1.0), longest) for factor in factors)


@cache
def microbatches_per_sequence(lengths: tuple[float, ...], prompt_tokens: float, budget: int) -> float:
    """Packing such sequences, longest first, each into the first microbatch with room; few long ones leave gaps."""
    rooms: list[float] = []
    for length in reversed(lengths):
        needed = prompt_tokens + length
        for number, room in enumerate(rooms):
            if needed <= room:
                rooms[number] -= needed
                break
        else:
            rooms.append(budget - needed)
    return len(rooms) / len(lengths)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step."""

    mixed_share: float
    rounds: Rounds
    prompts: float  # sampled, over all rounds
    answers: float  # sampled
    trained: float  # answers that are trained on
    updates: int
    prompt_tokens: float  # mean
    lengths: tuple[float, ...]  # quantiles of the answers' lengths
    longest_sequence: int  # prompt and answer, as the recipe allows
    microbatch_tokens: int  # of the fullest microbatch, over the context-parallel ranks
    microbatches: int  # of an update, on one data-parallel rank

    @property
    def answer_tokens(self) -> float:
        """Mean."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def sequence_tokens(self) -> float:
        """Mean of prompt and answer together."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def mean_square_tokens(self) -> float:
        """Mean of the square of a sequence's length: what attention costs."""
        return sum((self.prompt_tokens + length) ** 2 for length in self.lengths) / len(self.lengths)


def workload(config: Config, assumptions: Assumptions, imbalance: float) -> Workload:
    """A step of this recipe.

    Args:
        imbalance: heaviest data-parallel rank over the mean.
    """
    rollout, train, actor = config.rollout, config.train, config.actor
    longest = rollout.max_answer_tokens
    mean = assumptions.answer_tokens or DEFAULT_ANSWER_SHARE * longest
    prompt = assumptions.prompt_tokens or min(DEFAULT_PROMPT_TOKENS, config.data.max_prompt_tokens)
    lengths = length_quantiles(mean, assumptions.answer_spread, longest)
    trained = train.groups_per_step * rollout.group_size
    sequences = trained / train.updates_per_step / actor.dp * imbalance
    algorithm, share = config.algorithm, assumptions.mixed_share
    if algorithm.learns_from_unmixed and algorithm.weighs(right=True) and algorithm.weighs(right=False):
        share = 1.0  # every group is trained on
    rounds = sampling_rounds(train.groups_per_step, share)
    return Workload(
        mixed_share=share,
        rounds=rounds,
        prompts=rounds.prompts,
        answers=rounds.prompts * rollout.group_size,
        trained=trained,
        updates=train.updates_per_step,
        prompt_tokens=prompt,
        lengths=lengths,
        longest_sequence=config.max_sequence_tokens,
        microbatch_tokens=max(actor.tokens_per_microbatch, config.max_sequence_tokens),
        microbatches=max(1, ceil(sequences * microbatches_per_sequence(lengths, prompt, actor.tokens_per_microbatch))),
    )
