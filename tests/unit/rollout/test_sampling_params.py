"""How a recipe's sampling is told to vLLM. In a process of its own: vLLM changes torch for the whole process."""

import importlib.util
import json
import subprocess
import sys

import pytest

from megatron_nft.rollout.vllm.sampling import prompt_seed

ASK = """
import json
from megatron_nft.rollout.api import Sampling
from megatron_nft.rollout.vllm.sampling import sampling_params
told = sampling_params(Sampling(group_size=3, temperature=0.8, top_p=0.95, max_answer_tokens=17, seed=5,
    top_logprobs=4), "p/1")
print(json.dumps({name: getattr(told, name) for name in ("n", "temperature", "top_p", "max_tokens", "seed", "logprobs",
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")}))
"""


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_is_told_all_of_it_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    sampled = {"n": 3, "temperature": 0.8, "top_p": 0.95, "max_tokens": 17, "seed": prompt_seed(5, "p/1"),
               "logprobs": 4}  # fmt: skip
    untouched = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert told == sampled | untouched, "else the actor's log-probs would not be those of the sampling distribution"


def test_each_prompt_and_each_round_has_its_own_seed():
    seeds = {prompt_seed(seed, prompt_id) for seed in range(50) for prompt_id in ("p/1", "p/1#2", "p/11", "q/1")}
    assert len(seeds) == 200 and max(seeds) < 1 << 56
    assert prompt_seed(5, "p/1") == SEED_5_P1, "on every machine"


SEED_5_P1 = 57026283059573430
