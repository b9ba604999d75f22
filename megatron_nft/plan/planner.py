"""A recipe -> what it takes: memory by rank and phase, seconds by stage, whether it fits, and what is in the way; and
what a whole run of it takes.

Called by the command line (plan/__main__.py), by suggestions.py for the recipes near it, and by whoever wants to know
before a job starts.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.engine import Engine, Round, engine_of
from megatron_nft.plan.evaluation import Evaluation, plan_evaluation
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.memory import Memory, plan_memory
from megatron_nft.plan.parameters import RankParameters, parameters_of_rank
from megatron_nft.plan.rollouts import rollout_round, steady_rollout_s
from megatron_nft.plan.rounds import most_prompts
from megatron_nft.plan.saving import Saving, plan_saving
from megatron_nft.plan.start import Start, plan_start
from megatron_nft.plan.times import Stage, plan_times
from megatron_nft.plan.whole_run import WholeRun, plan_whole_run
from megatron_nft.plan.workload import Assumptions, Workload, workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe takes on a machine."""

    config: Config
    hf: HFConfig
    machine: Machine
    assumptions: Assumptions
    workload: Workload
    engine: Engine
    ranks: tuple[RankParameters, ...]  # by pipeline rank
    memory: Memory
    stages: tuple[Stage, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def warnings(self) -> tuple[str, ...]:
        """What would end the run though it fits."""
        limit, asked = self.config.rollout.max_sampling_rounds, self.workload.rounds.first
        most = most_prompts(self.config.train.groups_per_step)
        if asked <= limit * most:
            return ()
        return (
            f"a step asks for {asked:,} prompts at a mixed share of {self.workload.mixed_share:g}, and the run ends "
            f"after {limit * most:,} without enough mixed groups; set rollout.max_sampling_rounds = "
            f"{ceil(asked / most)} (it is {limit}), or use other prompts or a larger rollout.group_size",
        )

    @property
    def num_devices(self) -> int:
        workers = self.config.rollout.engines * self.config.rollout.tp
        return self.config.actor.world_size + (0 if self.config.is_colocated else workers)

    @property
    def seconds(self) -> float:
        """Of a step, with neither an evaluation nor a checkpoint."""
        return sum(stage.seconds for stage in self.stages)

    def seconds_of(self, *names: str) -> float:
        """Of these stages."""
        return sum(stage.seconds for stage in self.stages if stage.name in names)

    @cached_property
    def asynchronous(self) -> tuple[float, float] | None:
        """Seconds of an asynchronous step (train_async.py) on its engines and on its trainer, a sync included; the step
        takes the longer. None where both are on the same devices."""
        if self.config.is_colocated:
            return None
        rollout = steady_rollout_s(self.config, self.workload, self.engine, self.machine, self.memory.places)
        return rollout + self.seconds_of("sync"), self.seconds_of("log-prob", "train", "sync")

    @cached_property
    def round(self) -> Round:
        """The first of a step's rollouts."""
        return rollout_round(self.config, self.workload, self.engine, self.machine, self.memory.places)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        training_s = self.seconds_of("log-prob", "train")
        return plan_evaluation(self.config, self.workload, self.engine, self.machine, self.memory.places, training_s)

    @cached_property
    def saving(self) -> Saving | None:
        return plan_saving(self.config, self.hf, self.machine)

    @cached_property
    def start(self) -> Start | None:
        return plan_start(self.config, self.hf, self.machine, list(self.ranks), self.seconds_of("sync"))

    @cached_property
    def whole_run(self) -> WholeRun:
        """Of the synchronous steps."""
        return self._whole_run(self.seconds, self.evaluation)

    @cached_property
    def asynchronous_run(self) -> WholeRun | None:
        """There evaluations come between the steps."""
        alone = self.evaluation and replace(self.evaluation, beside_s=self.evaluation.alone_s)
        return self.asynchronous and self._whole_run(max(self.asynchronous), alone)

    def _whole_run(self, step_s: float, evaluation: Evaluation | None) -> WholeRun:
        return plan_whole_run(
            self.config, step_s, self.num_devices, start=self.start, evaluation=evaluation, saving=self.saving
        )

    @property
    def bottleneck(self) -> str:
        """The longest stage, and what it goes into most."""
        longest = max(self.stages, key=lambda stage: stage.seconds)
        share = longest.seconds / self.seconds
        part = longest.largest_part
        return (
            f"{longest.name} ({share:.0%} of the step), most of it {part} ({longest.parts[part] / longest.seconds:.0%})"
        )

    @property
    def tokens_per_s(self) -> float:
        """Trained on, prompts included, per second and device."""
        return self.workload.trained * self.workload.sequence_tokens / self.seconds / self.num_devices

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for --json: bytes and seconds."""
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "machine": self.machine.name,
            "devices": self.num_devices,
            "layout": self.config.actor.layout,
            "placement": self.config.cluster.placement,
            "seconds": self.seconds,
            "asynchronous_seconds": self.asynchronous and max(self.asynchronous),
            "rounds": {"prompts": self.workload.prompts, "mean": self.workload.rounds.mean,
                       "seconds": self.round.seconds, "tail_seconds": self.round.tail_s},
            "evaluation": self.evaluation and asdict(self.evaluation),
            "checkpoint": self.saving and asdict(self.saving),
            "start": self.start and {"seconds": self.start.seconds, "parts": self.start.parts},
            "run": {"steps": self.whole_run.steps, "hours": self.whole_run.hours,
                    "device_hours": self.whole_run.device_hours, "parts": self.whole_run.parts},
            "bottleneck": self.bottleneck,
            "tokens_per_s_per_device": self.tokens_per_s,
            "stages": [{"name": s.name, "seconds": s.seconds, "parts": s.parts} for s in self.stages],
            "memory": [
                {"phase": u.phase, "who": u.who, "bytes": u.total, "limit": u.limit, "parts": u.parts}
                for u in self.memory.usages
            ],
            "host": {"bytes": sum(self.memory.host_parts.values()), "limit": self.memory.host_limit,
                     "parts": self.memory.host_parts},
            "engine": {"kv_tokens": self.engine.kv_tokens, "answers_at_a_time": self.memory.places},
            "parameters": [
                {"stage": stage, "elements": r.elements, "buffer": r.buffer_elements, "largest_shard": max(r.shards)}
                for stage, r in enumerate(self.ranks)
            ],
            "workload": {
                "answers_sampled": self.workload.answers,
                "answers_trained": self.workload.trained,
                "answer_tokens": self.workload.answer_tokens,
                "prompt_tokens": self.workload.prompt_tokens,
                "updates": self.workload.updates,
                "microbatches": self.workload.microbatches,
            },
            "assumptions": asdict(self.assumptions),
        }  # fmt: skip


def make_plan(config: Config, hf: HFConfig, machine: Machine, assumptions: Assumptions | None = None) -> Plan:
    """The plan of a recipe that `load_config` has accepted."""
    assumptions = assumptions or Assumptions()
    work = workload(config, assumptions, machine.efficiency.imbalance)
    engine = engine_of(hf, config.rollout, machine, on_cpu=config.cluster.device == "cpu")
    ranks = [parameters_of_rank(hf, config.actor, rank, config.lora.adapters) for rank in range(config.actor.pp)]
    memory = plan_memory(config, hf, work, engine, machine, ranks)
    return Plan(
        config=config,
        hf=hf,
        machine=machine,
        assumptions=assumptions,
        workload=work,
        engine=engine,
        ranks=tuple(ranks),
        memory=memory,
        stages=plan_times(config, hf, work, engine, machine, ranks, memory.places),
        problems=(*memory.problems, *_placement_problems(config, machine)),
    )


def _placement_problems(config: Config, machine: Machine) -> Iterator[str]:
    """What a node can't give."""
    if config.cluster.device == "cpu":
        return
    for key, tp in (("actor.tp", config.actor.tp), ("rollout.tp", config.rollout.tp)):
        if tp > machine.gpus_per_node:
            yield (
                f"{key} = {tp} crosses nodes of {machine.gpus_per_node} devices: every layer would wait for the "
                f"network; set it to {machine.gpus_per_node} at most, and raise pp or cp"
            )
        elif machine.gpus_per_node % tp:
            yield f"{key} = {tp} does not divide a node's {machine.gpus_per_node} devices: a group would cross nodes"
    if config.actor.precision.startswith("fp8") and not machine.fp8_tflops:
        yield f'actor.precision = "{config.actor.precision}": {machine.name} has no FP8; set "bf16"'
