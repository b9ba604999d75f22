"""THE OTHER STORY: the same run with engines that never wait for the trainer, nor the trainer for a long answer.

    megatron-nft train-async launch/recipes/quickstart.toml [rollout.max_staleness=2 section.key=value ...]

    producer (threads)                                          trainer (this driver)

    prompts -> requests on the engines                          take: waits while too few groups are ready
                  |  ^                                            |
      answers     |  | too old: dropped                           v
                  v  |                                          score, train        the engines go on meanwhile
              graders -> mixed groups ==> bounded queue ==>       |
                                                                  v
    waits while max_staleness steps' worth                      sync: the engines pause between two decode steps, take
    of groups are ready or under way                            the weights, and go on with what they have begun

A step trains on tokens that were sampled up to rollout.max_staleness weight syncs before: the loss holds its ratio to
the actor's log-probs before the step (algorithm.old_logprobs = "actor", with algorithm.importance_cap for the way from
the policy that sampled) or to that policy's own ("engine"). With max_staleness = 0 this is train.py, number by number.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.config import Config, RecipeError
from megatron_nft.data.prompts import PromptStream
from megatron_nft.groups.queue import Taken
from megatron_nft.groups.source import Producer
from megatron_nft.observe.report import Report
from megatron_nft.run import command_line
from megatron_nft.run.checkpoints import Progress, read_groups
from megatron_nft.run.stop import Stop
from megatron_nft.train import Training


class AsyncTraining(Training):
    """The parts of a run, and a loop whose groups come from a producer."""

    engines_idle = False

    def __init__(self, config: Config, report: Report, parts: ExitStack) -> None:
        """As Training's.

        Raises:
            RecipeError: engines and actor share their GPUs.
        """
        if config.is_colocated:
            raise RecipeError(
                'cluster.placement = "colocated": engines and actor take turns on their GPUs, so neither can be ahead; '
                'set "split", or use megatron_nft.train'
            )
        super().__init__(config, report, parts)

    def make_sampler(self, prompts: PromptStream, parts: ExitStack) -> Producer:
        """Where the groups come from."""
        self.producer = Producer(self.config, prompts, self.engines, self.judge)
        parts.callback(self.producer.close)
        return self.producer

    def run_steps(self, stop: Stop) -> None:
        """From the step after the last to the end."""
        config, report = self.config, self.report
        with stop.interruptible():
            self.evaluate_and_export_if_due(self.progress.step)
        self.producer.resume(self.progress.policy_version)
        for step in range(self.progress.step + 1, config.train.steps + 1):
            with report.step(step):
                with stop.interruptible():
                    taken = self.take(step)
                report.add_rollouts(taken.graded)
                report.add(taken.metrics)
                self.learn(step, taken.groups, stop)
                with report.stage("sync"):
                    self.producer.pause()
                    report.add(self.sync())
            self.checkpoints.poll()
            with stop.interruptible():
                self.evaluate_and_export_if_due(step)
            if step < config.train.steps:
                self.producer.resume(step)
        self.checkpoints.finish()
        self.actors.save_hf(config.run_dir / "hf")

    def take(self, step: int) -> Taken:
        """A step's groups. Engines that have died and started again get the weights here, if groups are missing."""
        with self.report.stage("wait", total=self.config.train.groups_per_step, unit="groups") as progress:
            while (taken := self.producer.take(step, progress.update)) is None:
                self.producer.pause()
                self.sync()
                self.producer.resume(self.progress.policy_version)
        return taken

    def resume(self) -> None:
        """As Training's, with the producer at rest."""
        self.producer.pause()
        super().resume()

    def progress_after(self, step: int) -> Progress:
        """What a checkpoint of this step must hold: what is graded and what is under way, too."""
        if step:
            self.producer.trained()
        state, groups = self.producer.kept()
        return Progress(step=step, policy_version=step, sampling=state, minutes=self.report.minutes, groups=groups)

    def go_back(self, progress: Progress) -> None:
        """The producer goes on from a checkpoint."""
        self.producer.restore(progress.step, progress.sampling, read_groups(progress, self.producer.prompts))

    def start_again(self, error: ProcessLost) -> None:
        """As Training's; what is graded or under way goes back to the checkpoint, too."""
        self.producer.pause()
        self.producer.abandon()
        super().start_again(error)

    def sync(self) -> dict[str, float]:
        """As Training's, with all engines there."""
        self.producer.wait_for_engines()
        return super().sync()

    def save_and_stop(self) -> None:
        """Saves the last whole step, with all that has been graded since."""
        state, groups = self.producer.kept()
        self.progress = replace(self.progress, sampling=state, groups=groups)
        self.producer.close()
        super().save_and_stop()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    summary = "Trains as `megatron-nft train`, with engines that go on while the actor trains (rollout.max_staleness)."
    return command_line.main(AsyncTraining, "train-async", summary, argv)


if __name__ == "__main__":
    sys.exit(main())
