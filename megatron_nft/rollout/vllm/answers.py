"""A finished answer of vLLM's as a Rollout: its tokens and their log-probs, those of the likeliest tokens at each
place, and which weights sampled it. Called by engine.py.
"""

from typing import Any

import numpy as np

from megatron_nft.rollout.api import EngineError
from megatron_nft.types import Prompt, Rollout


def rollout_of(prompt: Prompt, answer: Any, text: str) -> Rollout:
    """
    Raises:
        EngineError: the answer ended otherwise than by its end, or by its length.
    """
    if answer.finish_reason not in ("stop", "length"):
        raise EngineError(
            f"vLLM ended an answer to prompt {prompt.prompt_id} with finish_reason {answer.finish_reason!r}"
        )
    spans = [(span.start, int(span.version)) for span in answer.weight_versions]
    # At each place the sampled token, and behind it the likeliest that were asked for, it among them or not.
    num_tokens, columns = len(answer.token_ids), {}
    logprobs_AK = np.array(answer.logprobs.logprobs, dtype=np.float32).reshape(num_tokens, -1)
    if logprobs_AK.shape[1] > 1:
        ids_AK = np.array(answer.logprobs.token_ids, dtype=np.int32).reshape(num_tokens, -1)
        columns = {"top_ids": ids_AK[:, 1:], "top_logprobs": logprobs_AK[:, 1:]}
    return Rollout(
        text=text,
        token_ids_A=np.array(answer.token_ids, dtype=np.int32),
        engine_logprobs_A=logprobs_AK[:, 0],
        truncated=answer.finish_reason == "length",
        policy_version=spans[0][1],
        newer_versions=tuple(spans[1:]),
        columns=columns,
    )
