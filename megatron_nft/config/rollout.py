"""The vLLM engines and how they sample."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from megatron_nft.config.section import Section
from megatron_nft.config.vllm_settings import refused

Tail = Literal["wait", "drop", "keep"]
"""What becomes of answers under way once enough groups are mixed: groups/queue.py."""


class RolloutConfig(Section):
    """vLLM engines: how many, how they sample, how far they may be ahead of the trainer."""

    engines: int = Field(1, ge=1)
    """Number of vLLM engines."""
    tp: int = Field(1, ge=1)
    """Tensor-parallel size of one engine."""
    group_size: int = Field(16, ge=2)
    """Answers per prompt (K). At least 2: a group of 1 is never mixed, so nothing could be learned from it."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of rollouts; the actor scores at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the engine's log-probs are of the truncated distribution: the gap metric shows it, and
    settings of [algorithm] that compare them with the actor's are refused."""
    top_logprobs: int = Field(0, ge=0)
    """The engine's likeliest tokens at each place, whose ids and log-probs come with every answer, for
    algorithm.score_centering (128 in its paper). 8 bytes each, to the actor and into checkpoints. 0: none."""
    max_answer_tokens: int = Field(3584, ge=1)
    """A longer answer is cut, and a cut answer counts as wrong."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the engine's weights."""
    max_sampling_rounds: int = Field(10, ge=1)
    """Before the run stops for want of mixed groups, a step tries so many times four prompts a group: with 10, sampling
    ends where fewer than a fortieth of the groups are mixed; long before, where the share of all that were
    asked leaves no doubt."""
    tail: Tail = "wait"
    """`megatron_nft.train`: what becomes of a round's last answers once train.groups_per_step groups are mixed. "wait":
    a step takes the first of them in the order of their prompts, and waits as long as an earlier prompt has no answers
    yet: what it trains on depends on no answer's length, and on no machine's speed. "drop": they are given up; those
    are the longest, so that training comes to favour short answers and easy prompts: `rollout/groups_cut` and
    `rollout/cut_tokens_mean`, beside `rollout/answer_tokens_mean`, say how far. "keep": they go on over the sync, as
    `on_sync` says, and the next step may train on them, one weight sync old: nothing is given up, and
    `async/staleness_mean` says how old. With cluster.placement = "split" they go on while the actor trains, too; with
    "colocated" they stand still meanwhile, and their KV cache is computed again."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of one engine on a CPU. On a GPU vLLM sizes it from `gpu_memory_fraction`."""
    gpu_memory_fraction: float = Field(0.6, gt=0, lt=1)
    """Share of a GPU's memory that an engine may take."""
    max_concurrent: int = Field(256, ge=1)
    """Answers that one engine works on at the same time (vLLM's max_num_seqs)."""
    timeout_s: float = Field(3600.0, gt=0)
    """Longest wait for the next finished group; then the engines that are late are started again."""
    max_restarts: int = Field(3, ge=0)
    """Engines that may die or hang, and be started again, in a row without a step further than before, before the run
    stops."""
    max_staleness: int = Field(2, ge=0)
    """`megatron_nft.train_async`: most weight syncs between the policy that sampled a token and the one that trains on
    it. 1: engines and trainer, as fast as each other, wait for each other a fifth of their time (benchmarks/async).
    0: they take turns, as in `megatron_nft.train`."""
    on_sync: Literal["keep", "recompute", "restart"] = "keep"
    """`megatron_nft.train_async`: what a weight sync means for answers under way. "keep": they go on with the new
    weights and the old KV cache; "recompute": and with a new one; "restart": they begin again from their prompt."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Any other of vLLM's engine arguments by name, such as {quantization = "fp8_per_channel"} or, on a GPU,
    {speculative_config = {method = "ngram", num_speculative_tokens = 3}}: handed on as they are, once vLLM's own class
    has taken them. What the program sets itself is refused, and so is what would change the answers' distribution or
    the engine's code. See megatron_nft/rollout/vllm/README.md."""

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        yield from sorted(refused(self.vllm))
