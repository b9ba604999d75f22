"""THE STORY: one NFT run, from a recipe to a better model.

    prompts -> rollouts -> verdicts -> NFT loss on Megatron -> resharded weights -> engines -> (again)

    megatron-nft train launch/recipes/quickstart.toml [section.key=value ...]

A few processes hold the model, sharded by Megatron-Core (`actors`); a few more hold vLLM engines (`engines`); this
driver moves data between them, one call per stage. What differs between runs is which part is put in: a source of
groups that samples when a step begins, or one that is ahead (train_async.py); GPUs of their own for actors and engines,
or shared ones. run/ builds the parts, and keeps the run alive.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from megatron_nft.data.packing import pack
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import save_batch
from megatron_nft.run import command_line
from megatron_nft.run.nonfinite import keep_nonfinite
from megatron_nft.run.run import Run
from megatron_nft.run.stop import Stop
from megatron_nft.types import RolloutGroup, TrainBatch


def train(run: Run, stop: Stop) -> None:
    """From the step after the last to the end. A stop is heeded within `stop.interruptible`, and else by the next."""
    config, report, steps = run.config, run.report, run.config.train.steps
    with stop.interruptible():
        evaluate_and_export_if_due(run, run.progress.step)
    for step in range(run.progress.step + 1, steps + 1):
        with report.step(step):
            with stop.interruptible():
                taken = run.take(step)  # graded groups with right and wrong answers
            report.add_rollouts(taken.graded)
            report.add(taken.metrics)
            run.held_out.begin_due()  # of the step before, on engines that would idle, if they may
            run.checkpoints.poll()
            with report.stage("pack"):
                batch = batch_of(run, taken.groups)
            run.turns.actor_turn()
            with report.stage("score"), stop.interruptible():
                batch = score(run, batch)
            with report.stage("train"):
                trained, batch = run.train_step(batch)  # NFT loss -> optimizer, updates_per_step times
            report.add(trained)
            run.gap_alarm.look(step, run.with_actors_logprobs(batch))
            if config.observe.save_batches:
                save_batch(batch, config.run_dir / "batches" / f"step_{step}.npz", step)
            if trained["actor/nonfinite_updates"]:
                keep_nonfinite(step, batch, config, run.actors, report)
            run.trained(step)
            with stop.interruptible():
                run.held_out.finish()
            if run.checkpoints.is_due(step):
                with report.stage("checkpoint"):
                    run.checkpoints.begin(run.progress)  # written while the run goes on
            with report.stage("sync"):
                report.add(run.sync())  # resharded weights -> engines
            report.add(run.measured(batch))
        run.checkpoints.poll()
        run.gap_alarm.stop_if_told()
        with stop.interruptible():
            evaluate_and_export_if_due(run, step)
    run.checkpoints.finish()
    run.actors.save_hf(config.run_dir / "hf")


def batch_of(run: Run, groups: Sequence[RolloutGroup]) -> TrainBatch:
    """Groups as training sequences with their weights, packed into microbatches of every update and replica."""
    config = run.config
    longest = config.rollout.max_answer_tokens
    return pack(
        [to_sequences(group, config.algorithm, max_answer_tokens=longest) for group in groups],
        num_updates=config.train.updates_per_step,
        dp=config.actor.dp,
        tokens_per_microbatch=config.actor.tokens_per_microbatch,
        attention_parity_tokens=run.hf.attention_parity_tokens,
    )


def score(run: Run, batch: TrainBatch) -> TrainBatch:
    """Sets old_logprobs, which the loss holds its ratio to; the actor's of the first update come of its training."""
    if run.config.algorithm.old_logprobs == "engine":
        batch = batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=s.engine_logprobs_A))
        return run.actors.score_reference(batch)
    if run.config.algorithm.rejects:  # what is left of the update's denominator is asked before it
        return run.actors.score(batch)
    return run.actors.score_later(batch)


def evaluate_and_export_if_due(run: Run, step: int) -> None:
    """Held-out accuracy and an HF folder, every so many steps; the accuracy before the first and after the last."""
    train, export = run.config.train, run.config.run_dir / f"hf_step_{step}"
    is_end = step in (0, train.steps)
    is_due = is_end or (train.evaluate_every and step % train.evaluate_every == 0)
    if is_due and not run.report.has_evaluation(step):  # a resumed run may have, before it was stopped
        run.held_out.evaluate(step)
    if not is_end and train.export_every and step % train.export_every == 0 and not export.exists():
        run.actors.save_hf(export)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    summary = "Trains a language model with NFT from its own right and wrong answers."
    return command_line.main(train, "train", summary, argv)


if __name__ == "__main__":
    sys.exit(main())
