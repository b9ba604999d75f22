"""A run's parts, built from its recipe: the data that it reads, and the processes that it starts side by side.

Called by run.py. A test may hand processes in that are up already, and so share them between runs.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.processes import Pending, new_attempt
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.data.benchmarks import Benchmark, load_benchmarks, prompts_of
from megatron_nft.data.prompts import PromptStream, load_prompts, load_tokenizer
from megatron_nft.families.hf_config import HFConfig, read_hf_config
from megatron_nft.families.serving import check_served
from megatron_nft.families.weight_files import check_weights
from megatron_nft.rollout.vllm.arguments import check_arguments
from megatron_nft.run.checkpoints import progress_to_resume
from megatron_nft.run.held_out import check_samples_of
from megatron_nft.types import Prompt
from megatron_nft.verdict.check import check_own_graders, check_rewards, silent_prompts


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads before it starts anything."""

    hf: HFConfig
    prompts: PromptStream
    canary: Prompt  # the longest: there positions show most
    held_out: tuple[Benchmark, ...]
    token_text: Callable[[int], str]  # for people


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What a run starts: Megatron ranks and engines."""

    actors: Actors
    engines: Fleet
    seconds: float = 0.0  # that it took


def read_data(config: Config, announce: Callable[[str], None]) -> Data:
    """Model's config, tokenizer and prompts.

    Raises:
        RecipeError: a grader of the recipe's own can't be imported, or vLLM refuses what is in rollout.vllm.
        ModelFolderError: weights are not config.json's, or vLLM would run another model than that, or none.
        DataError: a file is wrong, or the prompts are not those that the checkpoint to be gone on from belongs to.
    """
    tokenizer = load_tokenizer(config.model.hf_folder)
    train = load_prompts(config.data.train, tokenizer, config.data)
    prompts = PromptStream(train.prompts, config.run.seed)
    if (earlier := progress_to_resume(config)) is not None:
        prompts.check(earlier.sampling["prompts"])  # refuses others before anything starts
    held_out = load_benchmarks(config.data.held_out, tokenizer, config.data, config.evaluate.max_prompts)
    check_samples_of(config, held_out)
    num_held_out = sum(benchmark.num_prompts for benchmark in held_out)
    announce(
        f"data: {len(train.prompts)} training prompts ({train.num_too_long} too long and "
        f"{train.num_without_answer} without an answer left out), {num_held_out} held out"
    )
    for benchmark in held_out:
        if benchmark.remarks:
            announce(f"data: {benchmark.name}: {len(benchmark.prompts)} prompts asked{benchmark.remarks}")
    for line in silent_prompts([*train.prompts, *prompts_of(held_out)], config.verdict):
        announce(f"data: {line}")
    check_own_graders(config.verdict)  # imports them, in a process of its own
    check_rewards(config.verdict, {prompt.data_source for prompt in train.prompts})
    hf = read_hf_config(config.model.path)
    for folder in (None if config.model.is_megatron else config.model.path, config.model.reference):
        if folder is not None:  # load_config lets a folder without weights pass, for the planner
            check_weights(folder, hf)
    check_served(hf, config.model.path, max_tokens=config.max_sequence_tokens, device=config.cluster.device)
    check_arguments(config)
    canary = max(train.prompts, key=lambda prompt: len(prompt.token_ids_P))
    return Data(
        hf=hf,
        prompts=prompts,
        canary=canary,
        held_out=tuple(held_out),
        token_text=lambda token: tokenizer.decode([token]),
    )


def start_processes(
    config: Config,
    announce: Callable[[str], None],
    stack: ExitStack,
    given: Processes | None,
    beside: Callable[[], None],
) -> Processes:
    """Ranks and engines, with the model loaded; engines wait for weights.

    Args:
        stack: ends Ray, and all processes with it.
        given: processes that are up: they load this run's model.
        beside: is done while they start.

    Raises:
        ClusterError: there is no room for them, or they don't come up in time.
    """
    announce(
        f"actor: {config.actor.world_size} Megatron ranks ({config.actor.layout}), {config.actor.precision} | "
        f"{config.rollout.engines} vLLM engines, {config.rollout.dtype} | starting ..."
    )
    start = time.perf_counter()
    if given is None:
        placement, logs = stack.enter_context(ray_cluster(config)), new_attempt(config.run_dir)
        given = Processes(
            actors=Actors(config, placement, logs),
            engines=Fleet(config, placement, logs=logs, starts_empty=True),
        )
        starting = begin_build(given, shared=config.is_colocated)
    else:
        given.actors.reuse(config)
        given.engines.reuse(config)
        starting = [given.actors.begin_build()]
    beside()
    for pending in starting:
        pending.wait()
    return replace(given, seconds=time.perf_counter() - start)


def begin_build(processes: Processes, *, shared: bool) -> list[Pending]:
    """Both load the model, side by side. On shared GPUs the actor comes first, and leaves: vLLM counts free memory."""
    if not shared:
        return [processes.engines.begin_build(), processes.actors.begin_build()]
    building = processes.actors.begin_build()
    building.wait()
    processes.actors.offload()
    return [building, processes.engines.begin_build()]
