"""The loss of a run."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_nft.config.methods import CLIPPED, METHODS, NFT_LOSS, method_named
from megatron_nft.config.section import Section


class AlgorithmConfig(Section):
    """The loss: NFT, or one of the methods that it is compared with."""

    name: str = "nft"
    """The method, one of METHODS (config/methods.py): "nft", "rft" (as in the paper: normalize = 0), "rft_script" (as
    in the authors' script: normalize = 1), "grpo", "dr_grpo", "dapo". Sets the defaults of the settings below.
    On the command line a method takes its own settings along, over those that are the method's of the recipe."""
    neg_weight: float = 1.0
    """Weight of wrong answers in NFT's loss: 1 is NFT, 0 is rejection fine-tuning (RFT). -1: the clipped
    policy-gradient objective of GRPO, Dr. GRPO and DAPO instead; without a name, or on the command line over one with
    NFT's loss, it is "dapo"."""
    normalize: Literal[0, 1, 2] = 1
    """NFT, RFT: prompt weight w(q): 0: 1; 1: 1 - p (on-policy: Dr. GRPO); 2: sqrt((1 - p) / p) (on-policy: GRPO).
    GRPO and its kin: 1: advantage = reward - mean of the group; 2: that over the group's standard deviation."""
    clamp_negative: float = Field(1.0, gt=0, le=1)
    """NFT: lower clamp of a wrong answer's implicit likelihood ratio (the paper's epsilon); the gradient passes
    straight through."""
    ratio_type: Literal["token", "sequence"] = "token"
    """NFT, RFT: likelihood ratio per token, or one per answer (the product of its tokens' ratios), which then counts
    once: with `reduction = "sequences"`, the only one."""
    clip_low: float = Field(0.2, gt=0, le=1)
    """GRPO and its kin: a likelihood ratio below 1 - clip_low earns nothing more."""
    clip_high: float = Field(0.2, gt=0)
    """GRPO and its kin: a likelihood ratio above 1 + clip_high earns nothing more (DAPO: 0.28)."""
    overlong_penalty: float = Field(0.0, ge=0)
    """GRPO and its kin: DAPO's soft overlong punishment of long answers. At 1 (the paper's) an answer of full length
    loses half of what separates a right one from a wrong one. 0: off."""
    overlong_share: float = Field(0.2, ge=0, le=1)
    """The last part of rollout.max_answer_tokens, in which the punishment grows from nothing to full. 0: none."""
    reduction: Literal["tokens", "sequences", "constant", "published"] = "tokens"
    """"tokens": mean over all answer tokens of the optimizer mini-batch (DAPO); "sequences": mean over answers of
    their tokens' mean (GRPO); "constant": sum / `reduction_constant` / answers (Dr. GRPO); "published": the scale of
    the NFT authors' code, sum / 1000 / `published_ranks`, on which optimizer.grad_clip then acts as theirs did. NFT
    and RFT with a ratio per token only: of the others their code has no scale of its own."""
    published_ranks: int | None = Field(None, ge=1)
    """Data-parallel ranks of the authors' run, over which "published" averages whatever actor.dp is: 32 in their 7B run
    (4 x 8 GPUs), 16 in their 32B run (16 x 8 GPUs, 8 to a sequence)."""
    reduction_constant: float | None = Field(None, gt=0)
    """Divisor of the "constant" reduction, in tokens per answer. Unset: rollout.max_answer_tokens."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the frozen `model.reference`. 0: off, and no reference model is loaded."""
    old_logprobs: Literal["actor", "engine"] = "actor"
    """What the likelihood ratio is against. "actor": the actor's own log-probs before the step's first update;
    "engine": those of the policy that sampled each token, as the engine says: a forward pass less, its rounding in."""
    importance_cap: float = Field(0.0, ge=0)
    """Truncated importance correction of the gap between engine and actor: each token's loss is multiplied by
    min(actor's / engine's probability before the update, importance_cap). Usual: 2. 0: off."""

    @property
    def is_clipped(self) -> bool:
        """The clipped policy-gradient objective, in place of NFT's."""
        return self.neg_weight == -1

    @property
    def takes_scores(self) -> bool:
        """Learns from rewards, which may be any score from 0 to 1; else from right and wrong."""
        return METHODS[self.name].takes_scores

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method; choose one of {', '.join(METHODS)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = method_named(given)
        preset = dict(METHODS[name].preset) if isinstance(name, str) and name in METHODS else {}
        if given.get("ratio_type") == "sequence":
            preset["reduction"] = "sequences"
        return {"name": name, **preset, **given}

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        name, neg_weight = self.name, self.neg_weight
        if neg_weight < 0 and neg_weight != -1:
            yield (f"algorithm.neg_weight = {neg_weight:g}: choose 0 (RFT) or more (1: NFT), or exactly -1 (DAPO)")
        if self.is_clipped and name not in CLIPPED:
            yield (
                f'algorithm.neg_weight = -1 is the clipped objective, not "{name}"; '
                f"leave algorithm.name out (DAPO), or choose one of {', '.join(CLIPPED)}"
            )
        if not self.is_clipped and name in CLIPPED:
            yield (
                f'algorithm.neg_weight = {neg_weight:g} is a weight in NFT\'s loss, which "{name}" has not; '
                'leave neg_weight out, or set algorithm.name = "nft"'
            )
        if METHODS[name].preset.get("neg_weight") == 0 and neg_weight != 0:
            yield (
                f'algorithm.name = "{name}" learns from right answers only, neg_weight = {neg_weight:g} weighs wrong '
                'ones; set algorithm.name = "nft"'
            )
        if self.takes_scores and self.normalize == 0:
            yield (f'algorithm.normalize = 0 is not defined for "{name}"; choose 1 (Dr. GRPO) or 2 (GRPO, DAPO)')
        if self.is_clipped and self.ratio_type == "sequence":
            yield (f'algorithm.ratio_type = "sequence" is not defined for "{name}"; leave it at "token"')
        yield from self._reduction_problems()
        if self.old_logprobs == "engine" and self.importance_cap:
            yield (
                f"algorithm.importance_cap = {self.importance_cap:g} corrects for the gap from engine to actor, and "
                'algorithm.old_logprobs = "engine" knows the engine only; set importance_cap = 0, or "actor"'
            )
        if not self.takes_scores and self.overlong_penalty:
            yield (
                f"algorithm.overlong_penalty = {self.overlong_penalty:g} shapes a reward, and "
                f'"{name}" has verdicts only (a truncated answer is wrong); set it to 0, or algorithm.name = "dapo"'
            )
        yield from self._unread()

    def _unread(self) -> Iterator[str]:
        """Settings that were changed, and that the method doesn't read: the run would be another than was meant."""
        for key in METHODS[self.name].unread:
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                readers = ", ".join(name for name, row in METHODS.items() if key not in row.unread)
                yield (
                    f'algorithm.{key} = {json.dumps(value)} is not read by "{self.name}"; leave it out, or set '
                    f"algorithm.name to a method that reads it: {readers}"
                )
        if self.reduction_constant is not None and self.reduction != "constant":
            yield (
                f'algorithm.reduction_constant = {self.reduction_constant:g} is the divisor of the "constant" '
                f'reduction, and algorithm.reduction = "{self.reduction}"; leave it out, or set reduction = "constant"'
            )

    def _reduction_problems(self) -> Iterator[str]:
        if self.ratio_type == "sequence" and self.reduction != "sequences":
            yield (
                f'algorithm.reduction = "{self.reduction}" would weigh an answer by its tokens, and with '
                'algorithm.ratio_type = "sequence" it has one ratio and counts once; set reduction = "sequences"'
            )
        if self.reduction != "published":
            return
        if self.name not in NFT_LOSS:
            yield (
                f'algorithm.reduction = "published" is not defined for "{self.name}": the authors\' code sums token '
                "means of microbatches there, so its scale depends on how the batch is cut; leave reduction out, or "
                f"choose one of {', '.join(NFT_LOSS)}"
            )
        elif self.published_ranks is None:
            yield (
                'algorithm.reduction = "published" averages over the ranks of the authors\' run, whatever actor.dp is; '
                "set algorithm.published_ranks = 32 (their 7B run) or 16 (their 32B run)"
            )
