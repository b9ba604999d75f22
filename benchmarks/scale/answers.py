"""Answers of drawn lengths, whole as an engine gives them: token ids, log-probs and a text that graders can read.

Lengths are the planner's distribution; a prompt's own share of it makes its answers alike, as a hard problem's are.
Whether a prompt's answers are mixed, and which are right, is drawn from its seed: the same whichever engine answers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_nft.plan.workload import NUM_QUANTILES
from megatron_nft.rollout.api import Request
from megatron_nft.types import Rollout, RolloutGroup

CHARS_PER_TOKEN = 3
"""Of mathematics: 13 KB for 4,300 tokens."""
VOCABULARY = 150_000
WORDS = "so we multiply both sides by 2x + 3, and since $\\frac{a}{b} \\le 1$ holds for all n > 4, the sum is "


@dataclass(frozen=True)
class Answers:
    """What engines answer.

    Args:
        quantiles: of the answers' lengths, ascending.
        longest: beyond which an answer is cut.
        mixed_share: of prompts whose answers differ.
        alike: correlation of (the normal scores of) lengths of answers to one prompt.
    """

    quantiles: tuple[float, ...]
    longest: int
    mixed_share: float
    alike: float = 0.5

    def _random(self, request: Request) -> np.random.Generator:
        words = f"{request.sampling.seed}/{request.seed_id}".encode()
        return np.random.default_rng(list(words))

    def lengths(self, request: Request) -> list[int]:
        """Of each answer."""
        random, count = self._random(request), request.sampling.group_size
        normal = np.sqrt(self.alike) * random.normal() + np.sqrt(1 - self.alike) * random.normal(size=count)
        places = np.searchsorted(self._normal_quantiles, normal)
        return [max(1, int(self.quantiles[min(place, len(self.quantiles) - 1)])) for place in places]

    def group(self, request: Request, lengths: list[int], version: int) -> RolloutGroup:
        """The answers, without verdicts."""
        random = self._random(request)
        is_mixed, rate = random.random() < self.mixed_share, random.uniform(0.2, 0.8)
        rights = random.random(len(lengths)) < (rate if is_mixed else float(random.random() < 0.5))
        if is_mixed and len(lengths) > 1:
            rights[:2] = [True, False]
        rollouts = tuple(
            self._rollout(request.prompt.ground_truth, length, bool(right), version, int(start))
            for length, right, start in zip(lengths, rights, random.integers(0, 1 << 20, len(lengths)), strict=True)
        )
        return RolloutGroup(prompt=request.prompt, rollouts=rollouts)

    def canary(self, request: Request) -> RolloutGroup:
        """One short answer, on all engines the same."""
        rollout = self._rollout(request.prompt.ground_truth, request.sampling.max_answer_tokens, True, 0, 0)
        return RolloutGroup(prompt=request.prompt, rollouts=(rollout,))

    def _rollout(self, gold: str, length: int, right: bool, version: int, start: int) -> Rollout:
        said = gold if right else f"{int(gold) + 1 + start % 5}"
        end = f" Therefore the answer is \\boxed{{{said}}}."
        begin = start % len(WORDS)
        text = self._text[begin : begin + max(0, length * CHARS_PER_TOKEN - len(end))] + end
        return Rollout(
            text=text,
            token_ids_A=self._tokens[start : start + length],
            engine_logprobs_A=self._logprobs[start : start + length],
            truncated=False,
            policy_version=version,
        )

    @cached_property
    def _normal_quantiles(self) -> np.ndarray:
        from statistics import NormalDist

        return np.array([NormalDist().inv_cdf((i + 1) / NUM_QUANTILES) for i in range(len(self.quantiles) - 1)])

    @cached_property
    def _text(self) -> str:
        return WORDS * (self.longest * CHARS_PER_TOKEN // len(WORDS) + 2)

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, VOCABULARY, (1 << 20) + self.longest, dtype=np.int32)

    @cached_property
    def _logprobs(self) -> np.ndarray:
        return -np.random.default_rng(1).random((1 << 20) + self.longest, dtype=np.float32)
