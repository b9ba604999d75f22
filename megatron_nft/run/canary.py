"""The canary: after a weight sync every engine answers one prompt, and the actor says whether it would have, too.

Actors, engines and a prompt come in; the largest distance of their log-probs goes out. It finds what no checksum can:
a model that engines and actor read differently, and weights that arrived whole and were prepared wrongly by the engine.
Called by run.py, when weights.canary says.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from megatron_nft.cluster.stream import one_answer_each
from megatron_nft.config import Config
from megatron_nft.data.packing import pack
from megatron_nft.rollout.api import Sampling
from megatron_nft.types import Prompt, Rollout, TrainSequence

ANSWER_TOKENS = 64


class CanaryError(RuntimeError):
    """An engine's log-probs are not those of the actor."""


def check_canary(actors: Any, engines: Any, prompt: Prompt, config: Config) -> dict[str, float]:
    """Compares every engine's log-probs with the actor's, over one answer.

    The answer is sampled at the rollouts' temperature, since the actor scores at that, with the same seed each time.

    Raises:
        CanaryError: an engine's are further away than the recipe's canary_gap; the message names it.
    """
    sampling = Sampling(
        group_size=1,
        temperature=config.rollout.temperature,
        max_answer_tokens=min(ANSWER_TOKENS, config.rollout.max_answer_tokens),
        seed=0,
        with_experts=config.replays_engine,
    )
    asked = replace(prompt, prompt_id="canary")
    groups = one_answer_each(engines, asked, sampling, config.rollout.timeout_s)
    answers = {name: group.rollouts[0] for name, group in groups.items()}
    scores: dict[bytes, np.ndarray] = {}  # by answer: engines seldom differ
    gaps = {}
    for name, answer in answers.items():
        key = answer.token_ids_A.tobytes()
        if key not in scores:
            scores[key] = _score(actors, prompt, answer, config)
        gaps[name] = float(np.abs(answer.engine_logprobs_A - scores[key]).mean())
    worst = max(gaps, key=lambda name: np.nan_to_num(gaps[name], nan=np.inf))  # no number is further away than that
    if not gaps[worst] <= config.canary_gap:
        raise CanaryError(
            f"canary: {worst}'s log-probs are {gaps[worst]:.3g} nats per token from the actor's, weights.canary_gap is "
            f"{config.canary_gap:g}; it doesn't hold the weights that it was sent, or reads {config.model.hf_folder}/"
            f"config.json otherwise than the actor: what it answers is not this model's. All engines: {gaps}"
        )
    return {"weights/canary_gap": gaps[worst]}


def _score(actors: Any, prompt: Prompt, answer: Rollout, config: Config) -> np.ndarray:
    """The actor's log-probs of the answer, float32 [A]."""
    sequence = TrainSequence(
        token_ids_T=np.concatenate([prompt.token_ids_P, answer.token_ids_A]),
        num_prompt_tokens=len(prompt.token_ids_P),
        verdict=0.0,
        correct_rate=0.5,
        engine_logprobs_A=answer.engine_logprobs_A,
        experts_R=answer.experts_R,
    )
    batch = pack(
        [[sequence]], num_updates=1, dp=config.actor.dp, tokens_per_microbatch=config.actor.tokens_per_microbatch
    )
    scored = actors.score(batch)
    (sequence,) = [s for update in scored.updates for share in update for m in share for s in m.sequences]
    return sequence.old_logprobs_A
