"""Kept training batches, once more on the actor alone: same loss, same gradients, no engines, no sampling.

A recipe and stored batches come in; what comes of them, beside what the run recorded, is printed. Called by the
commands replay.py and train.py --replay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.data.packing import pack
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.observe.batches import BatchError, load_batch
from megatron_nft.observe.metrics import METRICS
from megatron_nft.observe.records import read_step_reports
from megatron_nft.run import checkpoint_folder
from megatron_nft.types import TrainBatch, TrainSequence

SAME_RELATIVE, SAME_ABSOLUTE = 1e-4, 1e-6
"""Two layouts, or two ways to pack a batch, differ by rounding: in fp32 by less than this. bf16 shows larger ones."""
AT_THE_EDGE = ("nft/clamped_fraction",)
"""In a step's first update every likelihood ratio is 1 but for rounding, and that is where NFT's clamp is."""


def replay(config: Config, updates: Sequence[list[TrainSequence]], step: int | None = None) -> int:
    """Scores and trains on the updates of a step; prints what comes of each. How many were not finite."""
    num_broken = 0
    with ray_cluster(config) as placement:
        actors = Actors(config, placement)
        actors.begin_build().wait()
        batches = [packed([update], config) for update in updates]
        # The stored old_logprobs stay: they are the ones that the loss was computed with.
        scored = [actors.score(batch) for batch in batches]
        print("score: " + score_difference(batches, scored))
        for number, (batch, now) in enumerate(zip(batches, scored, strict=True), 1):
            metrics, _ = actors.train_step(with_stored_logprobs(now, batch), step)
            values = " | ".join(f"{name.split('/')[1]} {metrics[name]:.6g}" for name in METRICS if name in metrics)
            print(f"update {number}/{len(batches)} | {values}", flush=True)
            if metrics["actor/nonfinite_updates"]:
                num_broken += 1
                print("\n".join(suspects(batch, now)), flush=True)
    return num_broken


def replay_step(config: Config, step: int) -> bool:
    """Trains up to `step` from the run's last checkpoint before it; whether all of its numbers are as recorded.

    Raises:
        BatchError: a batch between the checkpoint and the step was not kept, or the step not recorded.
        CheckpointError: the checkpoint is damaged.
    """
    recorded = recorded_metrics(config, step)
    checkpoint = next(
        (f for f in checkpoint_folder.published(config.run_dir) if checkpoint_folder.step_of(f) < step), None
    )
    first = checkpoint_folder.step_of(checkpoint) + 1 if checkpoint else 1
    stored = [load_batch(config.run_dir / "batches" / f"step_{number}.npz") for number in range(first, step + 1)]
    with ray_cluster(config) as placement:
        actors = Actors(config, placement)
        actors.begin_build().wait()
        if checkpoint:
            if damages := actors.damages(checkpoint):
                raise CheckpointError("; ".join(damages))
            actors.load(checkpoint)
        print(f"from {checkpoint or config.model.path} ({config.actor.layout})", flush=True)
        for number, updates in enumerate(stored, first):
            batch = packed(updates, config)
            scored = actors.score(batch)
            print(f"step {number}: {score_difference([batch], [scored])}", flush=True)
            metrics, _ = actors.train_step(with_stored_logprobs(scored, batch), number)
    lines, is_same = comparison(recorded, metrics)
    print("\n".join(lines))
    return is_same


def recorded_metrics(config: Config, step: int) -> dict[str, float]:
    """What the run's metrics.jsonl has of a step."""
    path = config.run_dir / "metrics.jsonl"
    if path.is_file():
        for record in read_step_reports(path):
            if (record.kind, record.step) == ("step", step):
                return record.metrics
    raise BatchError(f"{path} has no step {step}; is {config.run_dir} the run that is meant?")


def comparison(recorded: Mapping[str, float], now: Mapping[str, float]) -> tuple[list[str], bool]:
    """A line for each number that both have, and whether all agree to rounding."""
    lines, is_same = [f"{'':26}{'recorded':>14}{'replayed':>14}{'difference':>12}"], True
    for name in (name for name in METRICS if name in recorded and name in now):
        before, after = recorded[name], now[name]
        agrees = math.isclose(before, after, rel_tol=SAME_RELATIVE, abs_tol=SAME_ABSOLUTE) or (
            math.isnan(before) and math.isnan(after)
        )
        remark = (
            "" if agrees else "  not compared: most ratios lie at the clamp" if name in AT_THE_EDGE else "  DIFFERS"
        )
        is_same &= agrees or name in AT_THE_EDGE
        lines.append(f"{name:26}{before:14.6g}{after:14.6g}{after - before:12.1e}{remark}")
    return lines, is_same


def packed(updates: Sequence[list[TrainSequence]], config: Config) -> TrainBatch:
    """Stored updates as microbatches of this recipe's layout."""
    return pack(
        updates,
        num_updates=len(updates),
        dp=config.actor.dp,
        tokens_per_microbatch=config.actor.tokens_per_microbatch,
        attention_parity_tokens=read_hf_config(config.model.path).attention_parity_tokens,
    )


def score_difference(stored: Sequence[TrainBatch], scored: Sequence[TrainBatch]) -> str:
    """How far the stored old log-probs are from the model's own, in words."""
    gaps = np.concatenate(
        [
            np.abs(before.old_logprobs_A - now.old_logprobs_A)
            for batch, again in zip(stored, scored, strict=True)
            for before, now in zip(batch.sequences, again.sequences, strict=True)
        ]
    )
    finite = gaps[np.isfinite(gaps)]
    words = f"{len(gaps)} answer tokens, |stored - now| of their log-probs: "
    words += f"mean {finite.mean():.2g}, max {finite.max():.2g}" if len(finite) else "none is finite"
    return words + (f"; {len(gaps) - len(finite)} tokens are not finite" if len(finite) < len(gaps) else "")


def with_stored_logprobs(scored: TrainBatch, stored: TrainBatch) -> TrainBatch:
    """The scored batch (which has the reference model's log-probs, if any) with the old log-probs of the stored one."""
    old = iter([s.old_logprobs_A for s in stored.sequences])
    return scored.map_sequences(lambda s, _: replace(s, old_logprobs_A=next(old)))


def suspects(batch: TrainBatch, scored: TrainBatch) -> list[str]:
    """A line for each answer with log-probs that are not finite; if there is none, for the one that moved farthest."""
    lines, farthest, line_of_farthest = [], -1.0, "  no answer"
    for index, (stored, now) in enumerate(zip(batch.sequences, scored.sequences, strict=True)):
        columns = {"old": stored.old_logprobs_A, "engine": stored.engine_logprobs_A, "now": now.old_logprobs_A}
        broken = {name: int((~np.isfinite(x)).sum()) for name, x in columns.items()}
        moved = float(np.abs(now.old_logprobs_A - stored.old_logprobs_A).max())
        length = stored.num_answer_tokens
        line = f"  answer {index}: verdict {stored.verdict:g}, {length} tokens, farthest {moved:.3g} nats"
        if any(broken.values()):
            lines.append(line + ", not finite: " + ", ".join(f"{n} of {name}" for name, n in broken.items() if n))
        elif moved > farthest:
            farthest, line_of_farthest = moved, line
    return lines or [line_of_farthest + " (the stored and present log-probs of all answers are finite)"]
