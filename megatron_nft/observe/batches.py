"""Training batches to look at and to run again: the gap between engine and actor, and a file that holds a batch.

The driver hands over a scored TrainBatch. Files are plain numpy archives without pickles; their readers are the replay
in tests/parallel and whoever wants to see what a step trained on.
"""

from pathlib import Path

import numpy as np

from megatron_nft.types import TrainBatch, TrainSequence


def logprob_gap(batch: TrainBatch) -> dict[str, float]:
    """|engine_logprobs - old_logprobs| over all answer tokens of a scored batch: mean and maximum, in nats."""
    gaps = np.concatenate([np.abs(s.engine_logprobs_A - s.old_logprobs_A) for s in batch.sequences])
    return {"rollout/logprob_gap_mean": float(gaps.mean()), "rollout/logprob_gap_max": float(gaps.max())}


def save_batch(batch: TrainBatch, path: Path) -> None:
    """Writes a scored batch. How it was cut into microbatches is not kept: that belongs to the layout."""
    updates = [[s for rank in update for m in rank for s in m.sequences] for update in batch.updates]
    sequences = [s for update in updates for s in update]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        update=np.repeat(np.arange(len(updates)), [len(update) for update in updates]),
        num_tokens=[s.num_tokens for s in sequences],
        num_prompt_tokens=[s.num_prompt_tokens for s in sequences],
        verdict=[s.verdict for s in sequences],
        correct_rate=[s.correct_rate for s in sequences],
        token_ids=np.concatenate([s.token_ids_T for s in sequences]),
        engine_logprobs=np.concatenate([s.engine_logprobs_A for s in sequences]),
        old_logprobs=np.concatenate([s.old_logprobs_A for s in sequences]),
    )
    partial.replace(path)


def load_batch(path: Path) -> list[list[TrainSequence]]:
    """The sequences of each update of a saved batch."""
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    tokens = np.split(data["token_ids"], np.cumsum(data["num_tokens"])[:-1])
    answer_ends = np.cumsum(data["num_tokens"] - data["num_prompt_tokens"])[:-1]
    engine, old = (np.split(data[name], answer_ends) for name in ("engine_logprobs", "old_logprobs"))
    updates: list[list[TrainSequence]] = [[] for _ in range(int(data["update"].max()) + 1)]
    for i, update in enumerate(data["update"]):
        updates[update].append(
            TrainSequence(
                token_ids_T=tokens[i],
                num_prompt_tokens=int(data["num_prompt_tokens"][i]),
                verdict=float(data["verdict"][i]),
                correct_rate=float(data["correct_rate"][i]),
                engine_logprobs_A=engine[i],
                old_logprobs_A=old[i],
            )
        )
    return updates
