"""How a run survives what happens to it, whatever it learns from.

A process that can't be replaced alone takes it back to its last checkpoint, inside the job; a signal or an error ends
it after its last whole step is saved. run.py and supervised.py say what their parts are, and what is theirs to do.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.cluster.ranks import Actors
from megatron_nft.cluster.restarts import Restarts
from megatron_nft.config import Config
from megatron_nft.observe.owner import OwnerLost
from megatron_nft.observe.report import Report
from megatron_nft.run.around import TryAgain
from megatron_nft.run.checkpoints import Checkpoints, Progress
from megatron_nft.run.stop import Stop, StopRequested
from megatron_nft.verdict.judge import JudgeError

ANSWER_S = 60.0
"""For ranks to answer after an error, before it is tried to save what they hold."""
MENDED_BY_A_NEW_JOB = (ClusterError, JudgeError)
"""Processes that are lost too often: on other nodes, or with these nodes' memory free, they may live."""


class Survival:
    """What a run has to be gone on with. A subclass sets the first four attributes, then calls `_set_out`.

    Attributes:
        progress: the last step that is done, and what a checkpoint of it must hold.
    """

    config: Config
    report: Report
    actors: Actors
    checkpoints: Checkpoints
    progress: Progress

    def _set_out(self, seconds: float) -> None:
        """From the newest checkpoint, or from the start; ranks and engines took so many seconds to be up."""
        self.restarts = Restarts(self.config.cluster.max_restarts, "all ranks have", "cluster.max_restarts")
        self.start = replace(self._progress_of(0), minutes=0.0)
        self._is_whole = True  # the actor holds what it held after `progress`
        self.resume()
        self._first_step = self.progress.step
        self.report.count_earlier(self.progress.minutes)
        self.report.announce(f"ready after {seconds:.0f} s")

    # --- a subclass's own

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one, else to `start`."""
        raise NotImplementedError

    def _progress_of(self, step: int) -> Progress:
        """What a checkpoint of this step must hold."""
        raise NotImplementedError

    def _without_ranks(self, why: str) -> None:
        """All ranks are lost: what else has to end before new ones start."""

    def _take_no_more(self) -> None:
        """The run ends: what comes in from here on is lost, what came before belongs to `progress`."""

    def _before_the_last_save(self) -> None:
        """Nothing but the actor is needed any more."""

    # --- what ends it, and what doesn't

    def survive(self, steps: Callable[[Self, Stop], None], stop: Stop) -> None:
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
        """New processes for all Megatron ranks; back to the last checkpoint.

        Raises:
            ClusterError: that has been done cluster.max_restarts times in a row.
            ProcessLost: a process was lost meanwhile.
        """
        step, self.progress = self.progress.step, self.start  # nothing that save_and_stop could save
        self.restarts.count(error, step)
        self.report.announce(f"{error}\nstarting all ranks again, from the last checkpoint ...")
        self.checkpoints.abandon()
        self.actors.kill()
        self._without_ranks(str(error))
        self.actors.restart(self.config)
        self.actors.begin_build().wait()
        self.resume()

    def save_and_stop(self, patience_s: float) -> None:
        """Saves the last whole step, unless that has been done: the actor's weights are still those. What stands in the
        way is said, and no error.

        Args:
            patience_s: that ranks have to answer, whatever they are at.
        """
        try:
            self._take_no_more()
            if self.progress.step > self.checkpoints.newest_step and self._is_whole:
                self.actors.ping(patience_s)
            self.checkpoints.finish(self.progress.step)
            if self.config.checkpoint.every and self.progress.step > self.checkpoints.newest_step and self._is_whole:
                self.report.announce(f"saving step {self.progress.step} ...")
                self._before_the_last_save()
                self.checkpoints.begin(self.progress)
                self.checkpoints.finish()
        except Exception as error:
            self.report.announce(f"saving step {self.progress.step} failed: {error}")
        if self.progress.step > self.checkpoints.newest_step:
            last = self.checkpoints.newest_step
            self.report.announce(
                f"step {self.progress.step} is not saved{'' if self._is_whole else ' (the next was being trained)'}; "
                + (f"the last checkpoint is of step {last}" if last else "there is no checkpoint")
            )
