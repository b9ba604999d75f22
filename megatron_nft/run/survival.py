"""What surrounds a run's loop: its parts, started side by side, and how it survives what happens to them.

The loop itself is train.py's, or train_async.py's. A process that can't be replaced alone takes the run back to its
last checkpoint, inside the job; a signal ends it after saving the last whole step.
"""

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, closing
from dataclasses import replace

from megatron_nft.cluster.graders import spread_pool
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.processes import ProcessLost, new_attempt
from megatron_nft.cluster.workers import Actors, EngineGroup, begin_start
from megatron_nft.config import Config
from megatron_nft.data.prompts import PromptStream, load_prompts, load_tokenizer
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.groups.sampling import GroupSampler, NoMixedGroups
from megatron_nft.observe.report import Report
from megatron_nft.run.checkpoints import Checkpoints, Progress, Restarts, checkpoints_to_resume, progress_to_resume
from megatron_nft.run.held_out import HeldOutEvaluation
from megatron_nft.run.stop import Stop, StopRequested
from megatron_nft.verdict.check import check_own_graders, check_rewards
from megatron_nft.verdict.judge import Judge

MAX_GOLD_PROBLEMS = 20
"""Shown when a run starts; `python -m megatron_nft.verdict.agreement` shows all of the answers that it is given."""


class Run(ABC):
    """The parts of a run, and its survival."""

    engines_idle = True
    """While the actor trains, unless they share GPUs."""

    def __init__(self, config: Config, report: Report, parts: ExitStack) -> None:
        """Builds the parts: reads the data, then starts graders, Megatron ranks and engines side by side."""
        self.config, self.report, self.hf = config, report, read_hf_config(config.model.path)
        start = time.perf_counter()
        tokenizer = load_tokenizer(config.model.hf_folder)
        train = load_prompts(config.data.train, tokenizer, config.data)
        prompts, self.canary = PromptStream(train.prompts, config.run.seed), train.prompts[0]
        if (earlier := progress_to_resume(config)) is not None:
            prompts.check(earlier.sampling["prompts"])  # refuses others before anything starts
        check_own_graders(config.verdict)  # this, too
        check_rewards(config.verdict)
        held_out = load_prompts(config.data.held_out, tokenizer, config.data).prompts if config.data.held_out else ()
        held_out = held_out[: config.evaluate.max_prompts or None]
        report.announce(
            f"data: {len(train.prompts)} training prompts ({train.num_too_long} too long and "
            f"{train.num_without_answer} without an answer left out), {len(held_out)} held out"
        )
        report.announce(
            f"actor: {config.actor.world_size} Megatron ranks ({config.actor.layout}), {config.actor.precision} | "
            f"{config.rollout.engines} vLLM engines, {config.rollout.dtype} | starting ..."
        )
        placement, logs = parts.enter_context(ray_cluster(config)), new_attempt(config.run_dir)
        self.actors = Actors(config, placement, logs)
        self.engines = EngineGroup(config, placement, logs=logs, starts_empty=True)
        starting = begin_start(self.actors, self.engines)
        self.judge = parts.enter_context(Judge(config.verdict, spread_pool(config.verdict)))
        self.judge.warm_up()
        for problem in self.judge.gold_problems(train.prompts)[:MAX_GOLD_PROBLEMS]:
            report.announce(f"data: {problem}")
        behind = self.engines_idle and config.evaluates_in_background
        self.held_out = HeldOutEvaluation(config, self.engines, self.judge, held_out, report, in_background=behind)
        self.sampler = self.make_sampler(prompts, parts)
        for pending in starting:
            pending.wait()
        self.engines.refill = self.sync
        self.checkpoints = Checkpoints(config, self.actors, report.announce)
        self.start = replace(self.progress_after(0), minutes=0.0)
        self.restarts = Restarts(config.cluster.max_restarts)
        self.resume()
        report.count_earlier(self.progress.minutes)
        report.announce(f"ready after {time.perf_counter() - start:.0f} s")

    def make_sampler(self, prompts: PromptStream, parts: ExitStack) -> GroupSampler:
        """Where the groups come from."""
        return GroupSampler(self.config, prompts, self.engines, self.judge, self.report)

    def progress_after(self, step: int) -> Progress:
        """What a checkpoint of this step must hold."""
        return Progress(step=step, policy_version=step, sampling=self.sampler.state_dict(), minutes=self.report.minutes)

    def go_back(self, progress: Progress) -> None:
        """The sampler goes on from a checkpoint."""
        self.sampler.load_state_dict(progress.sampling)

    @abstractmethod
    def run_steps(self, stop: Stop) -> None:
        """From the step after the last to the end."""

    @abstractmethod
    def sync(self) -> dict[str, float]:
        """The actor's weights into all engines; metrics."""

    def run(self, stop: Stop) -> None:
        """The loop, gone on with from the last checkpoint where a process is lost that can't be replaced alone."""
        lost: ProcessLost | None = None
        while True:
            try:
                if lost is not None:
                    with stop.interruptible():
                        self.start_again(lost)
                return self.run_steps(stop)
            except ProcessLost as error:
                lost = error

    def start_again(self, error: ProcessLost) -> None:
        """New processes for all Megatron ranks, and for engines that are lost, too; back to the last checkpoint.

        Raises:
            ClusterError: that has been done cluster.max_restarts times in a row.
            ProcessLost: a process was lost meanwhile.
        """
        self.restarts.count(error, self.progress.step)
        self.report.announce(f"{error}\nstarting all ranks again, from the last checkpoint ...")
        self.held_out.finish()
        self.checkpoints.abandon()
        self.progress = self.start  # nothing that save_and_stop could save
        self.actors.kill()
        self.engines.replace_lost(str(error))
        self.engines.sleep()
        self.actors.restart(self.config)
        self.actors.begin_build().wait()
        self.resume()

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one; gives the engines the actor's weights in any case."""
        self.engines.sleep()
        self.actors.reload()
        self.progress = self.checkpoints.restore() or self.start
        self.go_back(self.progress)
        self.report.rewind(self.progress.step)
        self.sync()

    def save_and_stop(self) -> None:
        """Saves the last whole step, unless that has been done: the actor's weights are still those."""
        self.checkpoints.finish()
        if self.config.checkpoint.every and self.progress.step > self.checkpoints.newest_step:
            self.report.announce(f"saving step {self.progress.step} ...")
            self.engines.kill()  # whatever they are at; if colocated, the actor needs their GPUs
            self.actors.reload()
            self.checkpoints.begin(self.progress)
            self.checkpoints.finish()


def run_recipe(config: Config, kind: type[Run]) -> None:
    """Runs a recipe to its end, from its last checkpoint if it has one. Leaves the run folder in any case, and no
    process behind.

    Raises:
        StopRequested: a signal asked for it; the last whole step is saved, as when groups run out (NoMixedGroups).
    """
    checkpoints_to_resume(config)  # refuses what can't be gone on with, before anything starts
    report = Report(config)
    verdict = "done"
    try:
        with ExitStack() as parts:
            stop = parts.enter_context(closing(Stop()))
            with stop.interruptible():
                run = kind(config, report, parts)
            try:
                run.run(stop)
            except (StopRequested, NoMixedGroups):
                run.save_and_stop()
                raise
    except BaseException as error:
        words = f"interrupted: {error}".removesuffix(": ")
        interrupted = isinstance(error, KeyboardInterrupt | StopRequested)
        verdict = words if interrupted else f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        report.close(verdict)
