"""A run on given answers, around its loop: ranks, packing, checkpoints and report are those of a run that samples, and
there are no engines and no graders.

A recipe comes in, a model in the run's folder goes out. Called by sft.py.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.processes import new_attempt
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.data.demonstrations import InOrder, load_demonstrations
from megatron_nft.data.packing import pack
from megatron_nft.data.prompts import PromptStream, load_tokenizer
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.observe.owner import Owner
from megatron_nft.observe.report import Report
from megatron_nft.run.around import run_in_folder, say
from megatron_nft.run.checkpoints import Checkpoints, Progress
from megatron_nft.run.nonfinite import keep_nonfinite
from megatron_nft.run.stop import Stop
from megatron_nft.run.survival import Survival
from megatron_nft.types import TrainBatch

OF_SAMPLES = ("nft/ratio", "nft/moved", "nft/loss_", "nft/mass", "nft/logprob_wrong")
"""Metrics that say something of sampled answers only begin so."""


class SupervisedRun(Survival):
    """The parts of such a run.

    Args:
        stack: ends what is started here.
        actors: ranks that are up already, and outlive the run. None: its own.
    """

    def __init__(
        self, config: Config, report: Report, stack: ExitStack, owner: Owner, actors: Actors | None = None
    ) -> None:
        self.config, self.report, self._owner = config, report, owner
        self._given = load_demonstrations(config.data.train, load_tokenizer(config.model.hf_folder), config)
        order = PromptStream if config.sft.order == "shuffled" else InOrder
        self._stream = order(self._given.prompts, config.run.seed)
        self._begin = self._stream.state_dict()
        self._hf = read_hf_config(config.model.path)
        report.announce(
            f"data: {len(self._given.prompts)} given answers ({self._given.num_too_long} too long, "
            f"{self._given.num_blank} blank left out)"
        )
        report.announce(
            f"actor: {config.actor.world_size} Megatron ranks ({config.actor.layout}), {config.actor.precision} | "
            "starting ..."
        )
        began = time.perf_counter()
        if actors is None:
            placement = stack.enter_context(ray_cluster(config))
            actors = Actors(config, placement, new_attempt(config.run_dir))
        else:
            actors.reuse(config)
        self.actors = actors
        self.actors.begin_build().wait()
        self.checkpoints = Checkpoints(config, self.actors, report.announce, report.so_far, owner.check)
        stack.callback(self.checkpoints.close)
        self._set_out(time.perf_counter() - began)

    def train(self, stop: Stop) -> None:
        """From the step after the last to the end."""
        config, report = self.config, self.report
        for step in range(self.progress.step + 1, config.train.steps + 1):
            with report.step(step):
                self._owner.check()
                self.checkpoints.poll()
                with report.stage("pack"), stop.interruptible():
                    batch = self._batch()
                with report.stage("train"):
                    self._is_whole = False
                    trained, batch = self.actors.train_step(batch, step)
                report.add({name: x for name, x in trained.items() if not name.startswith(OF_SAMPLES)})
                if trained["actor/nonfinite_updates"]:
                    keep_nonfinite(step, batch, config, self.actors, report)
                self.progress, self._is_whole = self._progress_of(step), True
                report.trained()
                if self.checkpoints.is_due(step):
                    with report.stage("checkpoint"):
                        self.checkpoints.begin(self.progress)
            self.checkpoints.poll()
        self.checkpoints.finish()
        self.actors.save_hf(config.run_dir / "hf")

    def _batch(self) -> TrainBatch:
        """A step's answers: the next of the stream, cut into its updates as they come."""
        config = self.config
        learns_prompt = config.sft.learns == "all"
        taken = [
            self._given.sequence(prompt, learns_prompt=learns_prompt)
            for prompt in self._stream.take(config.train.groups_per_step)
        ]
        return pack(
            [[sequence] for sequence in taken],
            num_updates=config.train.updates_per_step,
            dp=config.actor.dp,
            tokens_per_microbatch=config.actor.tokens_per_microbatch,
            attention_parity_tokens=self._hf.attention_parity_tokens,
        )

    def _progress_of(self, step: int) -> Progress:
        state = {"prompts": self._stream.state_dict()}
        return Progress(step=step, policy_version=step, sampling=state, minutes=self.report.minutes)

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one."""
        self.progress = self.checkpoints.restore() or self.start
        self._stream.load_state_dict(self.progress.sampling["prompts"] if self.progress.step else self._begin)
        self.report.rewind(self.progress.step, self.progress.record)


def run_supervised(
    config: Config, *, actors: Actors | None = None, announce: Callable[[str], None] | None = None
) -> None:
    """Runs a recipe to its end, from its last checkpoint if it has one.

    Args:
        actors: of `SupervisedRun`.

    Raises:
        StopRequested, TryAgain: as `Survival.survive`; the last whole step is saved, as by other errors, too.
    """

    def live(report: Report, stack: ExitStack, stop: Stop, owner: Owner) -> None:
        with stop.interruptible():
            run = SupervisedRun(config, report, stack, owner, actors)
        run.survive(SupervisedRun.train, stop)

    run_in_folder(config, live, starts_processes=actors is None, announce=announce or say)
