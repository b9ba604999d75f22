"""The loss of a run."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_nft.config.corrections import CORRECTIONS, Bounds, correction_problems
from megatron_nft.config.methods import CLIPPED, METHODS, NFT_LOSS, method_named, readers_of
from megatron_nft.config.section import Section


class AlgorithmConfig(Section):
    """The loss: NFT, or one of the methods that it is compared with."""

    name: str = "nft"
    """The method, one of METHODS (config/methods.py): "nft", "rft" (as in the paper: normalize = 0), "rft_script" (as
    in the authors' script: normalize = 1), "grpo", "dr_grpo", "dapo", "gspo", "cispo", "maxrl", "topr", "psr", "nsr",
    "w_reinforce", "asymre" (nft/README.md). Sets the defaults of the settings below.
    On the command line a method takes its own settings along, over those that are the method's of the recipe."""
    neg_weight: float = 1.0
    """Weight of wrong answers in NFT's loss: 1 is NFT, 0 is rejection fine-tuning (RFT). -1: the clipped
    policy-gradient objective of GRPO, Dr. GRPO and DAPO instead; without a name, or on the command line over one with
    NFT's loss, it is "dapo"."""
    neg_weight_end: float | None = Field(None, ge=0)
    """Where neg_weight gets to, in equal steps, over the first `schedule_steps` rollout steps. Unset: it stays."""
    pos_weight: float = Field(1.0, ge=0)
    """Weight of right answers, where neg_weight weighs wrong ones: 0 learns from wrong answers only (NSR)."""
    pos_weight_end: float | None = Field(None, ge=0)
    """Where pos_weight gets to, over the first `schedule_steps` rollout steps. Unset: it stays."""
    schedule_steps: int | None = Field(None, ge=1)
    """Rollout steps after which neg_weight_end and pos_weight_end hold."""
    normalize: Literal[0, 1, 2, 3] = 1
    """NFT, RFT: prompt weight w(q): 0: 1; 1: 1 - p (on-policy: Dr. GRPO); 2: sqrt((1 - p) / p) (on-policy: GRPO);
    3: (1 - p) / p (on-policy: MaxRL).
    GRPO and its kin: 1: advantage = reward - mean of the group; 2: that over the group's standard deviation; 3: over
    its mean."""
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
    dual_clip: float = Field(0.0, ge=0)
    """GRPO and its kin: a wrong answer's token loses at most dual_clip times its advantage, however much likelier it
    has become (usual: 3). 0: off; else above 1 + clip_high."""
    baseline_shift: float = Field(-0.1, ge=-1, le=1)
    """Asymmetric REINFORCE: added to the group's mean reward. Below 0 right answers weigh more than wrong ones, which
    is what keeps learning from an older policy's answers stable."""
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
    min(actor's / engine's probability before the update, importance_cap). Usual: 2. 0: off. The first row of
    `corrections`' table, by its older name."""
    corrections: dict[str, Bounds] = Field({})
    """Further corrections of that gap, by name: {token_mask = [0.5, 5.0], sequence_k1 = 0.01}. The table, and what each
    leaves out of the denominator: nft/README.md."""
    score_centering: bool = False
    """Take what the sampler's distribution alone would do to the policy out of the gradient: of each token the score
    that its sampler expects, over the engine's `rollout.top_logprobs` likeliest tokens and all others together."""

    @property
    def all_corrections(self) -> dict[str, Bounds]:
        """Those of `corrections`, and importance_cap."""
        capped = {"token_truncate": self.importance_cap} if self.importance_cap else {}
        return {**capped, **self.corrections}

    @property
    def rejects(self) -> bool:
        """What a correction leaves out leaves the denominator: old log-probs must be known before the update."""
        return any(CORRECTIONS[name].rejects for name in self.corrections if name in CORRECTIONS)

    def at_step(self, step: int) -> "AlgorithmConfig":
        """What holds in a rollout step, counted from 1: with its schedules resolved."""
        ends = {key: getattr(self, f"{key}_end") for key in ("neg_weight", "pos_weight")}
        if self.schedule_steps is None or not any(end is not None for end in ends.values()):
            return self
        share = min((step - 1) / self.schedule_steps, 1.0)
        now = {key: (1 - share) * getattr(self, key) + share * end for key, end in ends.items() if end is not None}
        return self.model_copy(update=now)

    @property
    def is_clipped(self) -> bool:
        """The clipped policy-gradient objective, in place of NFT's."""
        return self.neg_weight == -1

    @property
    def learns_from_unmixed(self) -> bool:
        """Groups that are all right, or all wrong, too: those with an answer that it `weighs`."""
        row = METHODS[self.name]
        by_the_shift = "baseline_shift" not in row.unread
        return row.learns_from_unmixed and not (by_the_shift and self.baseline_shift == 0)

    def weighs(self, *, right: bool) -> bool:
        """Right answers, or wrong ones, in some step."""
        key = "pos_weight" if right else "neg_weight"
        return bool(getattr(self, key) or getattr(self, f"{key}_end"))

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
        if METHODS[name].preset.get("neg_weight") == 0 and (neg_weight != 0 or self.neg_weight_end):
            neg_weight = self.neg_weight_end or neg_weight
            yield (
                f'algorithm.name = "{name}" learns from right answers only, neg_weight = {neg_weight:g} weighs wrong '
                'ones; set algorithm.name = "nft"'
            )
        if METHODS[name].preset.get("pos_weight") == 0 and (pos_weight := self.pos_weight or self.pos_weight_end):
            yield (
                f'algorithm.name = "{name}" learns from wrong answers only, pos_weight = {pos_weight:g} weighs '
                'right ones; set algorithm.name = "w_reinforce"'
            )
        if name in CLIPPED and self.normalize == 0:
            yield (
                f'algorithm.normalize = 0 is not defined for "{name}"; choose 1 (Dr. GRPO), 2 (GRPO, DAPO) or 3 (MaxRL)'
            )
        yield from self._weight_problems()
        yield from self._reduction_problems()
        yield from self._gap_problems()
        if not self.takes_scores and self.overlong_penalty:
            yield (
                f"algorithm.overlong_penalty = {self.overlong_penalty:g} shapes a reward, and "
                f'"{name}" has verdicts only (a truncated answer is wrong); set it to 0, or algorithm.name = "dapo"'
            )
        yield from self._unread()

    def _weight_problems(self) -> Iterator[str]:
        for key in ("neg_weight", "pos_weight"):
            end = getattr(self, f"{key}_end")
            if end is not None and self.schedule_steps is None:
                yield (
                    f"algorithm.{key}_end = {end:g} is where {key} gets to, and algorithm.schedule_steps doesn't say "
                    "when; set schedule_steps"
                )
        if self.schedule_steps is not None and self.neg_weight_end is None and self.pos_weight_end is None:
            yield (
                f"algorithm.schedule_steps = {self.schedule_steps} is how long a weight changes, and none does; set "
                "neg_weight_end or pos_weight_end, or leave it out"
            )
        start = {key: getattr(self, key) for key in ("neg_weight", "pos_weight")}
        if not any(start.values()):
            when = " in the first step" if self.schedule_steps else ""
            yield (
                f"algorithm.neg_weight = 0 and algorithm.pos_weight = 0 leave nothing to learn from{when}; raise "
                "one of them"
            )
        end = {key: weight if (to := getattr(self, f"{key}_end")) is None else to for key, weight in start.items()}
        if any(start.values()) and not any(end.values()):
            settings = [f"{key}_end" if getattr(self, f"{key}_end") is not None else key for key in start]
            yield (
                f"algorithm.{settings[0]} = 0 and algorithm.{settings[1]} = 0 leave nothing to learn from after "
                f"schedule_steps = {self.schedule_steps}: the run would go on with a loss of 0; raise one of them"
            )
        if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
            yield (
                f"algorithm.dual_clip = {self.dual_clip:g} would cut what clip_high = {self.clip_high:g} lets pass; "
                f"set it above {1 + self.clip_high:g}, or to 0 (off)"
            )

    def _gap_problems(self) -> Iterator[str]:
        """Corrections of the gap from engine to actor."""
        yield from correction_problems(self.corrections, self.importance_cap)
        if self.old_logprobs == "engine" and self.all_corrections:
            listed = [f"corrections.{name}" for name in self.corrections]
            listed += [f"importance_cap = {self.importance_cap:g}"] * (self.importance_cap > 0)
            verb, remedy = ("correct", "leave them out") if len(listed) > 1 else ("corrects", "leave it out")
            yield (
                f"algorithm.{', '.join(listed)} {verb} for the gap from engine to actor, and algorithm.old_logprobs = "
                f'"engine" knows the engine only; {remedy}, or set "actor"'
            )
        if not self.score_centering:
            return
        if self.old_logprobs != "engine":
            yield (
                "algorithm.score_centering weighs every token that the engine might have sampled, of which only the "
                'engine says a log-prob; set algorithm.old_logprobs = "engine", to which the ratio then is held'
            )
        if self.ratio_type == "sequence" or METHODS[self.name].ratio_of_answers:
            yield (
                "algorithm.score_centering weighs tokens that were not sampled, and a likelihood ratio of the whole "
                'answer has no such; set algorithm.ratio_type = "token", or another method, or score_centering = false'
            )

    def _unread(self) -> Iterator[str]:
        """Settings that were changed, and that the method doesn't read: the run would be another than was meant."""
        for key in METHODS[self.name].unread:
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                yield (
                    f'algorithm.{key} = {json.dumps(value)} is not read by "{self.name}"; leave it out, or set '
                    f"algorithm.name to a method that reads it: {', '.join(readers_of(key))}"
                )
        if self.reduction_constant is not None and self.reduction != "constant":
            yield (
                f'algorithm.reduction_constant = {self.reduction_constant:g} is the divisor of the "constant" '
                f'reduction, and algorithm.reduction = "{self.reduction}"; leave it out, or set reduction = "constant"'
            )

    def _reduction_problems(self) -> Iterator[str]:
        row = METHODS[self.name]
        has_one_ratio = row.ratio_of_answers or (self.ratio_type == "sequence" and not row.ratio_is_weight)
        if has_one_ratio and self.reduction != "sequences":
            why = f'name = "{self.name}"' if row.ratio_of_answers else 'ratio_type = "sequence"'
            yield (
                f'algorithm.reduction = "{self.reduction}" would weigh an answer by its tokens, and with '
                f'algorithm.{why} it has one ratio and counts once; set reduction = "sequences"'
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
