"""How a request's answers are sampled, as vLLM is told. Called by engine.py."""

import hashlib
from typing import Any

from megatron_nft.rollout.api import Sampling


def sampling_params(sampling: Sampling, prompt_id: str) -> Any:
    """vLLM's parameters of a request, whose answers' seeds are made of this id."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=sampling.group_size,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_answer_tokens,
        seed=prompt_seed(sampling.seed, prompt_id),  # vLLM adds the answer's place in the group
        logprobs=sampling.top_logprobs,  # 0: the sampled token's only
        flat_logprobs=True,
        detokenize=False,  # one batched decode per group is cheaper than one per token
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_seed(seed: int, prompt_id: str) -> int:
    """56 bits, so that seeds of different prompts don't meet, and seed + place stays within vLLM's 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=7).digest())
