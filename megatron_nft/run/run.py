"""A run, around its loop: its parts, and how it survives what happens to them.

The loop is train.py's; it comes in as a function. A process that can't be replaced alone takes the run back to its last
checkpoint, inside the job; a signal ends it after saving the last whole step.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from megatron_nft.cluster.graders import spread_pool
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.cluster.restarts import Restarts
from megatron_nft.cluster.turns import Turns
from megatron_nft.cluster.usage import Usage
from megatron_nft.config import Config
from megatron_nft.groups.queue import Taken
from megatron_nft.groups.source import GroupSource
from megatron_nft.observe.owner import Owner, OwnerLost
from megatron_nft.observe.report import Report
from megatron_nft.run.around import TryAgain, run_in_folder
from megatron_nft.run.canary import check_canary
from megatron_nft.run.checkpoints import Checkpoints, Progress, read_groups
from megatron_nft.run.gap_alarm import GapAlarm
from megatron_nft.run.held_out import HeldOutEvaluation
from megatron_nft.run.libraries import libraries_into
from megatron_nft.run.parts import Data, Processes, read_data, start_processes
from megatron_nft.run.stop import Stop, StopRequested
from megatron_nft.run.usage import engine_load, memory, note_spans, training_speed
from megatron_nft.types import TrainBatch
from megatron_nft.verdict.judge import Judge, JudgeError
from megatron_nft.weights.sync import sync_weights

MAX_GOLD_PROBLEMS = 20
"""Shown when a run starts; `python -m megatron_nft.verdict.agreement` shows all of the answers that it is given."""

ANSWER_S = 60.0
"""For ranks to answer after an error, before it is tried to save what they hold."""
MENDED_BY_A_NEW_JOB = (ClusterError, JudgeError)
"""Processes that are lost too often: on other nodes, or with these nodes' memory free, they may live."""


class Run:
    """The parts of a run, and its survival.

    Args:
        max_staleness: steps by which sampling may be ahead of training. 0: synchronous.
        stack: ends what is started here.
        processes: ranks and engines that are up already, and outlive the run. None: its own.
        owner: of the run's folder.

    Attributes:
        progress: the last step that is done, and what a checkpoint of it must hold.
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
        self.gap_alarm = GapAlarm(config, report, is_ahead=max_staleness > 0)
        self.checkpoints = Checkpoints(config, self.actors, report.announce, report.so_far, owner.check)
        stack.callback(self.checkpoints.close)
        self.restarts = Restarts(config.cluster.max_restarts, "all ranks have", "cluster.max_restarts")
        self.start = replace(self._progress_of(0), minutes=0.0)
        self._is_whole = True  # the actor holds what it held after `progress`
        self.resume()
        self._first_step = self.progress.step
        report.count_earlier(self.progress.minutes)
        report.announce(f"ready after {processes.seconds:.0f} s")

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
        return taken

    def train_step(self, batch: TrainBatch) -> tuple[dict[str, float], TrainBatch]:
        """All updates of a step: their metrics, and the batch with all old log-probs. Until `trained`, the actor holds
        no step's weights that could be saved."""
        self._owner.check()
        self._is_whole = False
        return self.actors.train_step(batch)

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

    def _progress_of(self, step: int) -> Progress:
        """What a checkpoint of this step must hold."""
        state, groups = self.source.state()
        return Progress(step=step, policy_version=step, sampling=state, minutes=self.report.minutes, groups=groups)

    # --- survival

    def survive(self, steps: Callable[["Run", Stop], None], stop: Stop) -> None:
        """The loop, gone on with from the last checkpoint where a process is lost that can't be replaced alone; the
        last whole step is saved where it is to end early, by a signal or by an error.

        Raises:
            StopRequested: a signal asked for it; `goes_on`: a new job would get further.
            TryAgain: an error that a new job may mend.
            Exception: any other that ended the loop.
        """
        lost: ProcessLost | None = None
        try:
            while True:
                try:
                    if lost is not None:
                        with stop.interruptible():
                            self.start_again(lost)
                    return steps(self, stop)
                except ProcessLost as error:
                    lost = error
        except OwnerLost:  # what is in the folder is another's
            raise
        except (StopRequested, Exception) as error:
            self.save_and_stop(self.config.actor.timeout_s if isinstance(error, StopRequested) else ANSWER_S)
            has_gained = self.checkpoints.newest_step > self._first_step
            if isinstance(error, StopRequested):
                error.goes_on = has_gained or self.progress.step <= self.checkpoints.newest_step
            elif isinstance(error, MENDED_BY_A_NEW_JOB) and has_gained:
                raise TryAgain(str(error)) from error
            raise

    def start_again(self, error: ProcessLost) -> None:
        """New processes for all Megatron ranks, and for engines that are lost, too; back to the last checkpoint.

        Engines that don't answer are ended first: whatever waits for them, a sampling or an evaluation, ends with them.

        Raises:
            ClusterError: that has been done cluster.max_restarts times in a row.
            ProcessLost: a process was lost meanwhile.
        """
        step, self.progress = self.progress.step, self.start  # nothing that save_and_stop could save
        self.restarts.count(error, step)
        self.report.announce(f"{error}\nstarting all ranks again, from the last checkpoint ...")
        self.checkpoints.abandon()
        self.actors.kill()
        self.engines.replace_lost(str(error))
        self.source.pause()
        self.held_out.finish(while_waiting=lambda: self.engines.replace_lost(str(error)))
        if self.config.is_colocated:
            self.engines.sleep()
        self.actors.restart(self.config)
        self.actors.begin_build().wait()
        self.resume()

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one; gives the engines the actor's weights in any case."""
        self.source.pause()
        self.turns.actor_turn()
        self.progress = self.checkpoints.restore() or self.start
        self.source.begin(self.progress.step, self.progress.sampling, read_groups(self.progress, self.source.prompts))
        self.report.rewind(self.progress.step, self.progress.record)
        self._is_proven = False
        self.sync()

    def save_and_stop(self, patience_s: float) -> None:
        """Saves the last whole step, with all that has been graded since, unless that has been done: the actor's
        weights are still those. What stands in the way is said, and no error.

        Args:
            patience_s: that ranks have to answer, whatever they are at.
        """
        try:
            state, groups = self.source.state()
            self.progress = replace(self.progress, sampling=state, groups=groups)
            self.source.close()
            if self.progress.step > self.checkpoints.newest_step and self._is_whole:
                self.actors.ping(patience_s)
            self.checkpoints.finish(self.progress.step)
            if self.config.checkpoint.every and self.progress.step > self.checkpoints.newest_step and self._is_whole:
                self._save()
        except Exception as error:
            self.report.announce(f"saving step {self.progress.step} failed: {error}")
        if self.progress.step > self.checkpoints.newest_step:
            last = self.checkpoints.newest_step
            self.report.announce(
                f"step {self.progress.step} is not saved{'' if self._is_whole else ' (the next was being trained)'}; "
                + (f"the last checkpoint is of step {last}" if last else "there is no checkpoint")
            )

    def _save(self) -> None:
        self.report.announce(f"saving step {self.progress.step} ...")
        self.engines.kill()  # whatever they are at; if colocated, the actor needs their GPUs
        if self.config.is_colocated:
            self.actors.reload()
        self.checkpoints.begin(self.progress)
        self.checkpoints.finish()


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
