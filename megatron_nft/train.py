"""THE STORY: one NFT run, from a recipe to a better model.

    prompts -> rollouts -> verdicts -> NFT loss on Megatron -> resharded weights -> engines -> (again)

    megatron-nft train launch/recipes/quickstart.toml [section.key=value ...]

A few processes hold the model, sharded by Megatron-Core (`actors`); a few more hold vLLM engines (`engines`); this
driver moves data between them, one call per stage. run.py starts them, and keeps the run alive.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from megatron_nft.data.packing import pack
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import logprob_gap, save_batch
from megatron_nft.run import command_line
from megatron_nft.run.canary import check_canary
from megatron_nft.run.nonfinite import keep_nonfinite
from megatron_nft.run.stop import Stop
from megatron_nft.run.survival import Run
from megatron_nft.types import RolloutGroup, TrainBatch
from megatron_nft.weights.sync import sync_weights


class Training(Run):
    """The loop, over the parts that run.py builds."""

    def run_steps(self, stop: Stop) -> None:
        """From the step after the last to the end."""
        config, report = self.config, self.report
        with stop.interruptible():
            self.evaluate_and_export_if_due(self.progress.step)
        for step in range(self.progress.step + 1, config.train.steps + 1):
            with report.step(step):
                with stop.interruptible():
                    groups = self.sampler.sample(step)
                self.held_out.begin_due()  # of the step before, on engines that would idle, if they may
                self.learn(step, groups, stop)
                with report.stage("sync"):
                    report.add(self.sync())
            self.checkpoints.poll()
            with stop.interruptible():
                self.evaluate_and_export_if_due(step)
        self.checkpoints.finish()
        self.actors.save_hf(config.run_dir / "hf")

    def learn(self, step: int, groups: Sequence[RolloutGroup], stop: Stop) -> None:
        """A step's groups -> a better actor, and its checkpoint if one is due."""
        config, report = self.config, self.report
        self.checkpoints.poll()
        with report.stage("pack"):
            batch = pack(
                [
                    to_sequences(group, config.algorithm, max_answer_tokens=config.rollout.max_answer_tokens)
                    for group in groups
                ],
                num_updates=config.train.updates_per_step,
                dp=config.actor.dp,
                tokens_per_microbatch=config.actor.tokens_per_microbatch,
                attention_parity_tokens=self.hf.attention_parity_tokens,
            )
        self.engines.sleep()  # if colocated, the GPUs change hands here, and in the sync back again
        self.actors.reload()
        with report.stage("score"), stop.interruptible():
            batch = self.score(batch)
        if config.observe.save_batches:
            save_batch(batch, config.run_dir / "batches" / f"step_{step}.npz")
        with report.stage("train"):
            trained = self.actors.train_step(batch)  # NFT loss -> optimizer, updates_per_step times
        report.add(trained)
        if trained["actor/nonfinite_updates"]:
            keep_nonfinite(step, batch, config, self.actors, report)
        self.progress = self.progress_after(step)
        report.trained()
        with stop.interruptible():
            self.held_out.finish()
        if self.checkpoints.is_due(step):
            with report.stage("checkpoint"):
                self.checkpoints.begin(self.progress)  # written while the run goes on

    def score(self, batch: TrainBatch) -> TrainBatch:
        """Sets old_logprobs, which the loss holds its ratio to."""
        algorithm = self.config.algorithm
        if algorithm.old_logprobs == "engine":
            batch = batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=s.engine_logprobs_A))
            return self.actors.score_reference(batch)
        batch = self.actors.score(batch)
        self.report.add(logprob_gap(batch, algorithm.importance_cap))
        return batch

    def sync(self) -> dict[str, float]:
        """The actor's weights into all engines, and a look at whether they arrived."""
        metrics = sync_weights(self.actors, self.engines, self.progress.policy_version)
        if self.config.weights.canary:
            metrics |= check_canary(self.actors, self.engines, self.canary, self.config)
        return metrics

    def evaluate_and_export_if_due(self, step: int) -> None:
        """Held-out accuracy and an HF folder, every so many steps; the accuracy before the first and after the last."""
        train, export = self.config.train, self.config.run_dir / f"hf_step_{step}"
        is_end = step in (0, train.steps)
        is_due = is_end or (train.evaluate_every and step % train.evaluate_every == 0)
        if is_due and not self.report.has_evaluation(step):  # a resumed run may have, before it was stopped
            self.held_out.evaluate(step)
        if not is_end and train.export_every and step % train.export_every == 0 and not export.exists():
            self.actors.save_hf(export)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    summary = "Trains a language model with NFT from its own right and wrong answers."
    return command_line.main(Training, "train", summary, argv)


if __name__ == "__main__":
    sys.exit(main())
