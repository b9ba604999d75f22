"""A run, around its loop: its parts, and what the loop asks of them.

The loop is train.py's; it comes in as a function. What becomes of a run when something happens to it: survival.py.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from megatron_nft.cluster.graders import spread_pool
from megatron_nft.cluster.turns import Turns
from megatron_nft.cluster.usage import Usage
from megatron_nft.config import Config
from megatron_nft.groups.queue import Taken
from megatron_nft.groups.source import GroupSource
from megatron_nft.observe.owner import Owner
from megatron_nft.observe.report import Report
from megatron_nft.run.around import run_in_folder
from megatron_nft.run.canary import check_canary
from megatron_nft.run.checkpoints import Checkpoints, Progress, read_groups
from megatron_nft.run.gap_alarm import GapAlarm
from megatron_nft.run.held_out import HeldOutEvaluation
from megatron_nft.run.libraries import libraries_into
from megatron_nft.run.parts import Data, Processes, read_data, start_processes
from megatron_nft.run.stop import Stop
from megatron_nft.run.survival import Survival
from megatron_nft.run.usage import engine_load, memory, note_spans, training_speed
from megatron_nft.types import TrainBatch
from megatron_nft.verdict.judge import Judge
from megatron_nft.weights.sync import sync_weights

MAX_GOLD_PROBLEMS = 20
"""Shown when a run starts; `python -m megatron_nft.verdict.agreement` shows all of the answers that it is given."""


class Run(Survival):
    """The parts of a run.

    Args:
        max_staleness: steps by which sampling may be ahead of training. 0: synchronous.
        stack: ends what is started here.
        processes: ranks and engines that are up already, and outlive the run. None: its own.
        owner: of the run's folder.
    """

    def __init__(
        self,
        config: Config,
        report: Report,
        stack: ExitStack,
        *,
        max_staleness: int = 0,
        processes: Processes | None = None,
        owner: Owner,
    ) -> None:
        self.config, self.report, self._owner = config, report, owner
        data: Data = read_data(config, report.announce)
        self.hf, self.canary, report.token_text = data.hf, data.canary, data.token_text
        processes = start_processes(
            config, report.announce, stack, processes, beside=lambda: self._start_judge(data, stack)
        )
        self.actors, self.engines = processes.actors, processes.engines
        self.turns = Turns(self.actors, self.engines, shared=config.is_colocated)
        self.source = GroupSource(config, data.prompts, self.engines, self.judge, max_staleness)
        stack.callback(self.source.close)
        self.held_out = HeldOutEvaluation(
            config,
            self.engines,
            self.judge,
            data.held_out,
            report,
            refill=self.sync,
            in_background=not max_staleness and config.evaluate.in_background,
        )
        self.gap_alarm = GapAlarm(config, report, is_ahead=max_staleness > 0, has_experts=data.hf.mixture is not None)
        self.checkpoints = Checkpoints(config, self.actors, report.announce, report.so_far, owner.check)
        stack.callback(self.checkpoints.close)
        self._set_out(processes.seconds)

    def _start_judge(self, data: Data, stack: ExitStack) -> None:
        """Starts the graders, and has them read the ground truths: what they can't read is told."""
        self.judge = Judge(self.config.verdict, spread_pool(self.config.verdict))
        stack.callback(self.judge.close)
        self.judge.warm_up()
        for problem in self.judge.gold_problems(data.prompts.prompts)[:MAX_GOLD_PROBLEMS]:
            self.report.announce(f"data: {problem}")

    # --- what the loop asks for

    def take(self, step: int) -> Taken:
        """A step's groups, whatever becomes of engines on the way: one that died has been started again, and gets its
        weights here."""
        self._owner.check()
        self.held_out.ask_due(self.source)
        self.source.resume(self.progress.policy_version)
        while (taken := self.source.take(step, self.report)) is None:
            self.sync()
            self.source.resume(self.progress.policy_version)
        if self.config.is_colocated:
            self.source.pause()  # what it has under way stands still: the engines sleep next
        return taken

    def train_step(self, batch: TrainBatch) -> tuple[dict[str, float], TrainBatch]:
        """All updates of a step: their metrics, and the batch with all old log-probs. Until `trained`, the actor holds
        no step's weights that could be saved."""
        self._owner.check()
        self._is_whole = False
        return self.actors.train_step(batch, self.progress.step + 1)

    def with_actors_logprobs(self, batch: TrainBatch) -> TrainBatch | None:
        """Of a batch that was just trained, what has the actor's log-probs of before the step: all of it, or the first
        update where the ratio is held to the engine's. None: not even that, its forward pass has dropped inputs."""
        if self.config.algorithm.old_logprobs == "actor":
            return batch
        return None if self.config.lora.dropout else self.actors.first_update(batch)

    def trained(self, step: int) -> None:
        """The actor has been trained: from here on this is the step that a stop saves."""
        self.source.trained()
        self.progress, self._is_whole = self._progress_of(step), True
        self.engines.step_done(step)
        self.report.trained()

    def sync(self) -> dict[str, float]:
        """The actor's weights into all engines, and a look at whether they arrived. Requests under way stand still
        meanwhile, and go on with `take`."""
        self.source.pause()
        return self.engines.with_replacements(self._sync)

    def _sync(self) -> dict[str, float]:
        version = self.progress.policy_version
        metrics = sync_weights(self.actors, self.engines, version, self.turns.engine_turn)
        if self.config.weights.canary == "always" or (self.config.weights.canary == "start" and not self._is_proven):
            start = time.perf_counter()
            metrics |= check_canary(self.actors, self.engines, self.canary, self.config)
            if not self._is_proven:
                gap, seconds = metrics["weights/canary_gap"], time.perf_counter() - start
                self.report.announce(f"canary: engines and actor are {gap:.1e} nats a token apart | {seconds:.1f}s")
            self._is_proven = True
        return metrics

    def measured(self, batch: TrainBatch) -> dict[str, float]:
        """What the open step, which has trained on this batch, has taken."""
        self.report.add_batch(batch)
        ranks, engines = self.actors.usage(), self.engines.usage()
        note_spans(self.report.timeline, ranks | engines | {"graders": Usage(self.judge.take_spans())})
        device = next((usage.device for usage in ranks.values()), "")
        usages = [*ranks.values(), *engines.values()]
        speed = training_speed(batch, self.hf, self.config, self.report.seconds("train"), device)
        return speed | memory(usages) | engine_load(usages)

    # --- of its survival, what is this kind of run's own

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one; gives the engines the actor's weights in any case."""
        self.source.pause()
        self.engines.forget()
        self.turns.actor_turn()
        self.progress = self.checkpoints.restore() or self.start
        self.source.begin(self.progress.step, self.progress.sampling, read_groups(self.progress, self.source.prompts))
        self.report.rewind(self.progress.step, self.progress.record)
        self._is_proven = False
        self.sync()

    def _progress_of(self, step: int) -> Progress:
        state, groups = self.source.state()
        return Progress(step=step, policy_version=step, sampling=state, minutes=self.report.minutes, groups=groups)

    def _without_ranks(self, why: str) -> None:
        """Engines that don't answer are ended first: whatever waits for them, a sampling or an evaluation, ends too."""
        self.engines.replace_lost(why)
        self.source.pause()
        self.held_out.finish(while_waiting=lambda: self.engines.replace_lost(why))
        if self.config.is_colocated:
            self.engines.sleep()

    def _take_no_more(self) -> None:
        state, groups = self.source.state()  # with all that has been graded since
        self.progress = replace(self.progress, sampling=state, groups=groups)
        self.source.close()

    def _before_the_last_save(self) -> None:
        self.engines.kill()  # whatever they are at; if colocated, the actor needs their GPUs
        if self.config.is_colocated:
            self.actors.reload()


def run_recipe(
    config: Config,
    steps: Callable[[Run, Stop], None],
    *,
    max_staleness: int = 0,
    processes: Processes | None = None,
) -> None:
    """Runs a recipe to its end, from its last checkpoint if it has one. Leaves the run folder in any case, and no
    process behind.

    Args:
        steps: the loop.
        max_staleness, processes: of `Run`.

    Raises:
        StopRequested, TryAgain: as `Run.survive`; the last whole step is saved, as by other errors, too.
    """

    def live(report: Report, stack: ExitStack, stop: Stop, owner: Owner) -> None:
        stack.enter_context(libraries_into(config.run_dir / "logs" / "driver.log"))
        with stop.interruptible():
            run = Run(config, report, stack, max_staleness=max_staleness, processes=processes, owner=owner)
        run.survive(steps, stop)

    run_in_folder(config, live, starts_processes=processes is None)
