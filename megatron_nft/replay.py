"""Runs a kept training batch again on the actor alone: same loss, same gradients, no engines, no sampling.

    python -m megatron_nft.replay runs/NAME/recipe.toml runs/NAME/batches/step_3.npz [section.key=value ...]

Batches are kept with observe.save_batches = true, and always when an update was not finite (then
runs/NAME/nonfinite/step_N/batch.npz, with the weights that it met in hf/, to be given as model.path). Scores the
batch with the model, compares that with the stored old log-probs, trains the updates one by one from a new optimizer,
and says which answers have to do with a number that is not finite. Any layout: actor.tp=1 does on one process.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.workers import Actors, ClusterError
from megatron_nft.config import Config, RecipeError, load_config
from megatron_nft.data.packing import pack
from megatron_nft.hf_config import ModelFolderError, read_hf_config
from megatron_nft.observe.batches import BatchError, load_batch
from megatron_nft.observe.metrics import METRICS
from megatron_nft.types import TrainBatch, TrainSequence


def replay(config: Config, updates: Sequence[list[TrainSequence]]) -> int:
    """Scores and trains on the updates; prints what comes of each. How many were not finite."""
    num_broken, hf = 0, read_hf_config(config.model.path)
    with ray_cluster(config) as placement:
        actors = Actors(config, placement)
        actors.begin_build().wait()
        batches = [
            pack(
                [update],
                num_updates=1,
                dp=config.actor.dp,
                tokens_per_microbatch=config.actor.tokens_per_microbatch,
                attention_parity_tokens=hf.attention_parity_tokens,
            )
            for update in updates
        ]
        # The stored old_logprobs stay: they are the ones that the loss was computed with.
        scored = [actors.score(batch) for batch in batches]
        print("score: " + score_difference(batches, scored))
        for number, (batch, now) in enumerate(zip(batches, scored, strict=True), 1):
            metrics = actors.train_step(with_stored_logprobs(now, batch))
            values = " | ".join(f"{name.split('/')[1]} {metrics[name]:.6g}" for name in METRICS if name in metrics)
            print(f"update {number}/{len(batches)} | {values}", flush=True)
            if metrics["actor/nonfinite_updates"]:
                num_broken += 1
                print("\n".join(suspects(batch, now)), flush=True)
    return num_broken


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


def main() -> int:
    """The command line; exit status 0 all updates finite, 1 some were not or the cluster failed, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_nft.replay",
        description="Scores a kept training batch again and trains on it, on the actor alone.",
        epilog="example: python -m megatron_nft.replay runs/nft/recipe.toml runs/nft/nonfinite/step_7/batch.npz "
        "model.path=runs/nft/nonfinite/step_7/hf",
    )
    parser.add_argument("recipe", help="the run's recipe.toml")
    parser.add_argument("batch", type=Path, help="a batch.npz or step_N.npz that the run kept")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the recipe")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.recipe, [*arguments.overrides, "optimizer.skip_nonfinite=true"])
        updates = load_batch(arguments.batch)
        return 1 if replay(config, updates) else 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, BatchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
