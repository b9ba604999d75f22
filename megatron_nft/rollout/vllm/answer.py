"""An answer as vLLM gives it -> a Rollout, with the log-probs of its tokens and which policy sampled each. Called by
engine.py."""

from typing import Any

import numpy as np

from megatron_nft.rollout.api import EngineError
from megatron_nft.types import Prompt, Rollout


def rollout_of(prompt: Prompt, answer: Any, text: str) -> Rollout:
    """One answer.

    Raises:
        EngineError: vLLM ended it otherwise than by its end or its length.
    """
    if answer.finish_reason not in ("stop", "length"):
        raise EngineError(
            f"vLLM ended an answer to prompt {prompt.prompt_id} with finish_reason {answer.finish_reason!r}"
        )
    spans = [(span.start, int(span.version)) for span in answer.weight_versions]
    # At each place the sampled token, and after it the likeliest ones, whether it is one of them or not.
    num_tokens = len(answer.token_ids)
    logprobs_AK = np.array(answer.logprobs.logprobs, dtype=np.float32).reshape(num_tokens, -1)
    columns = {}
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
