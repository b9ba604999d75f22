"""Settings -> a recipe that a person can read and change: TOML, each choice with its reason."""

import json
from collections.abc import Iterator
from typing import Any

from megatron_nft.init.choose import PUBLISHED_RATE, Chosen, Given

ORDER = (
    "run", "model", "data", "rollout", "verdict", "algorithm", "actor", "weights", "optimizer", "train", "evaluate",
    "checkpoint", "cluster",
)  # fmt: skip
WHY = {
    "run.name": "its folder: runs/NAME",
    "data.train": "what may be in it: megatron_nft/data/README.md",
    "data.max_prompt_tokens": "longer prompts are left out",
    "rollout.group_size": "answers to a question; their correct rate is what NFT learns from",
    "rollout.max_answer_tokens": "what is longer is cut, and counts as wrong",
    "rollout.gpu_memory_fraction": "of a GPU, for an engine at work: weights and KV cache",
    "rollout.kv_cache_gib": "of the machine's memory, for an engine",
    "verdict.workers": "processes that grade",
    "algorithm.name": "or rft, grpo, dr_grpo, dapo",
    "actor.tokens_per_microbatch": "less, if memory is short; no figure depends on it",
    "actor.recompute": "activations once more in the backward pass, for their memory",
    "actor.sequence_parallel": "with tp: activations are split, too",
    "optimizer.optimizer_cpu_offload": "its state stays in the host's memory: slower, but fits",
    "optimizer.learning_rate": "the published one, for pretrained models",
    "train.groups_per_step": "questions with right and wrong answers that a step trains on",
    "train.updates_per_step": "optimizer updates that share a step's answers",
    "train.evaluate_every": "steps",
    "evaluate.samples": "answers to each held-out question, beside the greedy one",
    "checkpoint.every": "steps; a run that is stopped goes on from the last",
    "cluster.placement": "actor and engines take turns on the same GPUs",
}
TOYS_RATE = f"for a toy, as this is; {PUBLISHED_RATE:g}, the published one, for pretrained models"


def recipe_text(given: Given, chosen: Chosen) -> str:
    """The whole file."""
    return "\n".join(_lines(given, chosen)) + "\n"


def _lines(given: Given, chosen: Chosen) -> Iterator[str]:
    plan = chosen.plan
    devices = f"{given.gpus} x {plan.machine.name}" if given.gpus and plan else "a CPU"
    yield f"# Made by `megatron-nft init` for {given.model} on {devices}. Every setting, its default and its meaning:"
    yield "# megatron-nft config. What it takes, and layouts beside this one: megatron-nft plan FILE --suggest"
    for section in ORDER:
        if not (settings := chosen.settings.get(section)):
            continue
        yield f"\n[{section}]"
        for key, value in settings.items():
            is_toys = key == "learning_rate" and value != PUBLISHED_RATE
            why = TOYS_RATE if is_toys else WHY.get(f"{section}.{key}", "")
            yield f"{key} = {_toml(value)}" + (f"  # {why}" if why else "")
        if section == "data" and not given.held_out:
            yield '# held_out = ["FILE"]  # to see held-out accuracy, which alone says whether the model gets better'


def _toml(value: Any) -> str:
    """JSON's texts, numbers, truths and lists are TOML's."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
