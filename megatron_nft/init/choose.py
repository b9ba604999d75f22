"""A model's size, data and GPUs -> the settings of a recipe: lengths and sizes by rule, the layout by the planner.

On GPUs actor and engines share all of them, and take turns: nothing idles, and any number of GPUs will do. Of the
planner's layouts that fit the fastest is taken, less what a plan doesn't know (`_worth`); if none does, the optimizer
goes to the host. Called by the command.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from megatron_nft.config import Config, RecipeError
from megatron_nft.config.errors import explain, listed
from megatron_nft.config.layout import layout_problems
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.init.prompts import Prompts
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.suggestions import suggest

Settings = dict[str, dict[str, Any]]
SMALL = 100e6
"""Parameters below which a model is a toy: it learns at another rate."""
PUBLISHED_RATE = 1e-6
ENGINE_TPS = (1, 2, 4, 8)
ROOM = 0.85
"""Of a GPU's memory, that a plan should leave the rest of: no plan is exact."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command was given, and what it has found out."""

    model: str
    data: tuple[str, ...]
    held_out: tuple[str, ...]
    gpus: int  # 0: a CPU
    name: str
    prompts: Prompts | None  # None: no data was given


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The settings, by section; or why there are none."""

    settings: Settings
    plan: Plan | None = None
    problems: tuple[str, ...] = ()


def choose(given: Given, hf: HFConfig, machine: Machine) -> Chosen:
    """The recipe's settings.

    Raises:
        RecipeError: the model has room for no answer.
    """
    base = base_settings(given, hf)
    plans, problems = [], ()
    for settings in _candidates(base, given, hf):
        config = checked(settings)
        if refused := tuple(layout_problems(config, hf)):
            problems = problems or refused
            continue
        plan = make_plan(config, hf, machine)
        problems = problems or plan.problems
        found = [suggestion.plan for suggestion in suggest(plan)] if given.gpus else [plan]
        plans += [plan for plan in found if plan.fits]
    if not plans:
        return Chosen(settings=base, problems=problems)
    best = min(plans, key=_worth)
    return Chosen(settings=_with_layout(base, best.config), plan=best)


def base_settings(given: Given, hf: HFConfig) -> Settings:
    """All but the layout."""
    return _on_gpus(given, hf) if given.gpus else _on_a_cpu(given, hf)


def checked(settings: Settings) -> Config:
    """The settings as a recipe.

    Raises:
        RecipeError: they can't be together.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(listed("the recipe", [explain(each, Config) for each in error.errors()])) from None


def fullness(plan: Plan) -> float:
    """The share of its memory that the fullest device needs."""
    return max(usage.total / usage.limit for usage in plan.memory.usages)


def _worth(plan: Plan) -> tuple[bool, bool, float]:
    """The less the better: a state that leaves the GPU costs more than the plan knows, so does a GPU that is nearly
    full; context parallelism of sequences that one rank could hold has to be worth it."""
    return (
        plan.config.optimizer.optimizer_cpu_offload,
        fullness(plan) > ROOM,
        plan.seconds * (1.1 if plan.config.actor.cp > 1 else 1.0),
    )


def _candidates(base: Settings, given: Given, hf: HFConfig) -> Iterator[Settings]:
    """The settings with each size of an engine, and with the optimizer on the GPUs or not."""
    if not given.gpus:
        yield base
        return
    for offload in (False, True):
        for tp in ENGINE_TPS:
            if given.gpus % tp or hf.num_attention_heads % tp or hf.num_key_value_heads % tp:
                continue
            yield _merged(base, {
                "rollout": {"tp": tp, "engines": given.gpus // tp},
                "actor": {"tp": 1, "dp": given.gpus},
                "optimizer": {"optimizer_cpu_offload": offload},
            })  # fmt: skip


def _with_layout(base: Settings, config: Config) -> Settings:
    """The settings with the layout of a plan, as far as it isn't the default."""
    actor, rollout = config.actor, config.rollout
    changes: Settings = {
        "rollout": {"engines": rollout.engines, "tp": rollout.tp},
        "actor": {"tp": actor.tp, "dp": actor.dp},
    }
    changes["actor"] |= {axis: getattr(actor, axis) for axis in ("pp", "cp") if getattr(actor, axis) > 1}
    changes["actor"] |= {"sequence_parallel": True} if actor.sequence_parallel else {}
    changes["actor"] |= {"recompute": actor.recompute} if actor.recompute != "none" else {}
    if config.optimizer.optimizer_cpu_offload:
        changes["optimizer"] = {"optimizer_cpu_offload": True}
    return _merged(base, changes)


def _lengths(given: Given, hf: HFConfig, longest_answer: int, longest_prompt: int) -> tuple[int, int]:
    """Tokens of a prompt and of an answer, at most; both within the model's positions."""
    positions = min(hf.max_position_embeddings, hf.sliding_window or hf.max_position_embeddings)
    needed = given.prompts.most if given.prompts else longest_prompt
    prompt = min(-(-max(needed, 1) // 64) * 64, longest_prompt, positions // 2)
    answer = min(longest_answer, positions - prompt)
    if answer < 1:
        raise RecipeError(f"the model has {positions} positions: no room for a prompt and an answer")
    return prompt, answer


def _groups_and_updates(given: Given, most: int, updates: int) -> dict[str, int]:
    """Of a step: at most a quarter of the prompts, so that a step doesn't sample all of them; the same number of groups
    an update."""
    groups = max(min(most, given.prompts.count // 4), 1) if given.prompts else most
    updates = min(updates, groups)
    return {"groups_per_step": groups - groups % updates, "updates_per_step": updates}


def _on_gpus(given: Given, hf: HFConfig) -> Settings:
    prompt, answer = _lengths(given, hf, 4096, 1024 if given.prompts else 512)
    sizes = _groups_and_updates(given, most=128, updates=4)
    return _merged(_of_both(given, hf, prompt), {
        "rollout": {"group_size": 16, "max_answer_tokens": answer, "gpu_memory_fraction": 0.6},
        "verdict": {"workers": 4 * given.gpus},
        "actor": {"tokens_per_microbatch": max(8192, prompt + answer)},
        "optimizer": {"weight_decay": 0.1, "warmup_rollout_steps": 10},
        "train": {"steps": 100, **sizes},
        "checkpoint": {"every": 10},
        "cluster": {"device": "cuda", "placement": "colocated"},
    })  # fmt: skip


def _on_a_cpu(given: Given, hf: HFConfig) -> Settings:
    prompt, answer = _lengths(given, hf, 128, 512)
    sizes = _groups_and_updates(given, most=8, updates=2)
    return _merged(_of_both(given, hf, prompt), {
        "rollout": {"engines": 1, "tp": 1, "group_size": 8, "max_answer_tokens": answer, "dtype": "float32",
                    "kv_cache_gib": 0.25},
        "actor": {"tp": 1, "precision": "fp32", "tokens_per_microbatch": max(2048, prompt + answer)},
        "weights": {"bucket_mib": 4},
        "optimizer": {"warmup_updates": 4},
        "train": {"steps": 10, **sizes},
        "checkpoint": {"every": 5},
        "cluster": {"device": "cpu"},
    })  # fmt: skip


def _of_both(given: Given, hf: HFConfig, prompt: int) -> Settings:
    size = hf.num_hidden_layers * hf.layer_parameters + hf.vocab_size * hf.hidden_size
    settings: Settings = {
        "run": {"name": given.name},
        "model": {"path": given.model},
        "data": {"train": list(given.data), "max_prompt_tokens": prompt},
        "algorithm": {"name": "nft"},
        "optimizer": {"learning_rate": 5e-5 if size < SMALL else PUBLISHED_RATE},
    }
    if given.held_out:
        settings["data"]["held_out"] = list(given.held_out)
        settings["evaluate"] = {"samples": 4}
        settings["train"] = {"evaluate_every": 5}
        if not given.gpus:
            settings["evaluate"] |= {"max_prompts": max(128 // len(given.held_out), 1), "in_background": False}
    return settings


def _merged(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> Settings:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in dict.fromkeys([*one, *other])}
