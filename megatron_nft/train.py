"""THE STORY: one NFT run, from a recipe to a better model.

    prompts -> rollouts -> verdicts -> NFT loss on Megatron -> resharded weights -> engines -> (again)

    python -m megatron_nft.train launch/recipes/quickstart.toml [section.key=value ...]

A few processes hold the model, sharded by Megatron-Core (`actors`); a few more hold vLLM engines (`engines`); this
driver moves data between them, one call per stage.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from megatron_nft.canary import CanaryError, check_canary
from megatron_nft.checkpoint_folder import CheckpointError
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.processes import ProcessLost, new_attempt
from megatron_nft.cluster.workers import Actors, EngineGroup, begin_start
from megatron_nft.config import Config, RecipeError, load_config
from megatron_nft.data.packing import pack
from megatron_nft.data.prompts import DataError, PromptStream, load_prompts, load_tokenizer
from megatron_nft.held_out import HeldOutEvaluation
from megatron_nft.hf_config import ModelFolderError, read_hf_config
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import BatchError, logprob_gap, save_batch
from megatron_nft.observe.report import Report
from megatron_nft.replay import replay_step
from megatron_nft.resume import Checkpoints, Progress, Restarts, checkpoints_to_resume, progress_to_resume
from megatron_nft.rollout.engine import EngineError
from megatron_nft.sampling import GroupSampler, NoMixedGroups
from megatron_nft.stop import Stop, StopRequested
from megatron_nft.types import RolloutGroup, TrainBatch
from megatron_nft.verdict.judge import Judge
from megatron_nft.verdict.pool import JudgeError
from megatron_nft.weights.sync import sync_weights


class NonFiniteUpdate(RuntimeError):
    """An update's gradient was not finite."""


INTERRUPTED, GO_ON = 130, 75
"""Exit status: the shell's of Ctrl-C; sysexits' EX_TEMPFAIL, by which a batch script knows that it is to requeue."""


class Training:
    """The parts of a run, and its loop."""

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
        self.judge = parts.enter_context(Judge(config.verdict))
        self.judge.warm_up()
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

    def resume(self) -> None:
        """Goes back to the newest checkpoint, if there is one; gives the engines the actor's weights in any case."""
        self.engines.sleep()
        self.actors.reload()
        self.progress = self.checkpoints.restore() or self.start
        self.go_back(self.progress)
        self.report.rewind(self.progress.step)
        self.sync()

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
            self.keep_nonfinite(step, batch)
        self.progress = self.progress_after(step)
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

    def save_and_stop(self) -> None:
        """Saves the last whole step, unless that has been done: the actor's weights are still those."""
        self.checkpoints.finish()
        if self.config.checkpoint.every and self.progress.step > self.checkpoints.newest_step:
            self.report.announce(f"saving step {self.progress.step} ...")
            self.engines.kill()  # whatever they are at; if colocated, the actor needs their GPUs
            self.actors.reload()
            self.checkpoints.begin(self.progress)
            self.checkpoints.finish()

    def sync(self) -> dict[str, float]:
        """The actor's weights into all engines, and a look at whether they arrived."""
        metrics = sync_weights(self.actors, self.engines, self.progress.policy_version)
        if self.config.weights.canary:
            metrics |= check_canary(self.actors, self.engines, self.canary, self.config)
        return metrics

    def keep_nonfinite(self, step: int, batch: TrainBatch) -> None:
        """Keeps the batch of a step with a non-finite update.

        Raises:
            NonFiniteUpdate: unless optimizer.skip_nonfinite; the weights that the update met are kept, too.
        """
        folder = self.config.run_dir / "nonfinite" / f"step_{step}"
        save_batch(batch, folder / "batch.npz")
        replay = f"python -m megatron_nft.replay {self.config.run_dir / 'recipe.toml'} {folder / 'batch.npz'}"
        if self.config.optimizer.skip_nonfinite:
            self.report.announce(f"step {step}: left a non-finite update out; look at it with: {replay}")
            return
        self.actors.save_hf(folder / "hf")
        raise NonFiniteUpdate(
            f"step {step}: an update's gradient was not finite, and was not applied; look at it with: "
            f"{replay} model.path={folder / 'hf'}   (or leave such updates out: optimizer.skip_nonfinite=true)"
        )

    def evaluate_and_export_if_due(self, step: int) -> None:
        """Held-out accuracy and an HF folder, every so many steps; the accuracy before the first and after the last."""
        train, export = self.config.train, self.config.run_dir / f"hf_step_{step}"
        is_end = step in (0, train.steps)
        is_due = is_end or (train.evaluate_every and step % train.evaluate_every == 0)
        if is_due and not self.report.has_evaluation(step):  # a resumed run may have, before it was stopped
            self.held_out.evaluate(step)
        if not is_end and train.export_every and step % train.export_every == 0 and not export.exists():
            self.actors.save_hf(export)


def train(config: Config, kind: type[Training] = Training) -> None:
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
                training = kind(config, report, parts)
            try:
                training.run(stop)
            except (StopRequested, NoMixedGroups):
                training.save_and_stop()
                raise
    except BaseException as error:
        words = f"interrupted: {error}".removesuffix(": ")
        interrupted = isinstance(error, KeyboardInterrupt | StopRequested)
        verdict = words if interrupted else f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        report.close(verdict)


def main(kind: type[Training] = Training, program: str = "megatron_nft.train") -> int:
    """The command line; exit status 0 done, 1 failed, 2 wrong recipe or data, 75 stopped by SIGUSR1 (run it again: it
    goes on from its checkpoint), 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description="Trains a language model with NFT from its own right and wrong answers.",
        epilog=f"example: python -m {program} launch/recipes/quickstart.toml actor.tp=1 actor.pp=2 run.seed=2",
    )
    parser.add_argument("recipe", help="TOML file; every setting and its default is in megatron_nft/config.py")
    parser.add_argument(
        "--replay", type=int, metavar="STEP", help="train again on a stored step; see megatron_nft.replay"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the recipe")
    arguments = parser.parse_intermixed_args()
    try:
        config = load_config(arguments.recipe, arguments.overrides)
        if arguments.replay is not None:
            return 0 if replay_step(config, arguments.replay) else 1
        train(config, kind)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except StopRequested as request:
        print(f"interrupted by {request}; the same command goes on from the last checkpoint", file=sys.stderr)
        return GO_ON if request.number == signal.SIGUSR1 else INTERRUPTED
    except (
        ClusterError,
        EngineError,
        JudgeError,
        CanaryError,
        CheckpointError,
        NoMixedGroups,
        NonFiniteUpdate,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, DataError, BatchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
