"""Training batches to look at and to run again: a file that holds a batch.

The driver hands over a scored TrainBatch. Files are plain numpy archives without pickles; their readers are the replay
in tests/parallel and whoever wants to see what a step trained on.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_nft.observe.experts_file import add_experts, read_experts
from megatron_nft.types import Rollout, TrainBatch, TrainSequence, join_columns, split_columns

_FIELDS = {
    "update",
    "num_tokens",
    "num_prompt_tokens",
    "verdict",
    "correct_rate",
    "advantage",
    "token_ids",
    "engine_logprobs",
    "old_logprobs",
}
"""Arrays of a batch file."""

COLUMN = "column/"
"""Before the name of a further column's array, here and in groups/file.py."""


def save_batch(batch: TrainBatch, path: Path, step: int) -> None:
    """Writes a step's scored batch. How it was cut into microbatches is not kept: that belongs to the layout."""
    updates = [[s for rank in update for m in rank for s in m.sequences] for update in batch.updates]
    sequences = [s for update in updates for s in update]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        step=step,
        update=np.repeat(np.arange(len(updates)), [len(update) for update in updates]),
        num_tokens=[s.num_tokens for s in sequences],
        num_prompt_tokens=[s.num_prompt_tokens for s in sequences],
        verdict=[s.verdict for s in sequences],
        correct_rate=[s.correct_rate for s in sequences],
        advantage=[s.advantage for s in sequences],
        token_ids=np.concatenate([s.token_ids_T for s in sequences]),
        engine_logprobs=np.concatenate([s.engine_logprobs_A for s in sequences]),
        old_logprobs=np.concatenate([s.old_logprobs_A for s in sequences]),
        **column_arrays(sequences),
    )
    add_experts(partial, sequences, compressed=True)
    partial.replace(path)


class BatchError(ValueError):
    """A file is not a saved batch."""


def load_batch(path: Path) -> list[list[TrainSequence]]:
    """The sequences of each update of a saved batch.

    Raises:
        BatchError: no such file, or not one that `save_batch` has written to its end.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BatchError(f"{path} is not a saved batch: {error}; runs keep theirs as batches/step_N.npz") from None
    if missing := _FIELDS - data.keys():
        raise BatchError(f"{path} is not a saved batch: it has no {', '.join(sorted(missing))}")
    tokens = np.split(data["token_ids"], np.cumsum(data["num_tokens"])[:-1])
    answer_ends = np.cumsum(data["num_tokens"] - data["num_prompt_tokens"])[:-1]
    engine, old = (np.split(data[name], answer_ends) for name in ("engine_logprobs", "old_logprobs"))
    columns = read_columns(data, data["num_tokens"] - data["num_prompt_tokens"])
    experts = read_experts(data, len(tokens))
    updates: list[list[TrainSequence]] = [[] for _ in range(int(data["update"].max()) + 1)]
    for i, update in enumerate(data["update"]):
        updates[update].append(
            TrainSequence(
                token_ids_T=tokens[i],
                num_prompt_tokens=int(data["num_prompt_tokens"][i]),
                verdict=float(data["verdict"][i]),
                correct_rate=float(data["correct_rate"][i]),
                advantage=float(data["advantage"][i]),
                engine_logprobs_A=engine[i],
                old_logprobs_A=old[i],
                columns=columns[i],
                experts_R=experts[i],
            )
        )
    return updates


def step_of_batch(path: Path) -> int | None:
    """The rollout step of a saved batch, by which its schedules go; None: it was saved before that was kept."""
    with np.load(path, allow_pickle=False) as file:
        return int(file["step"]) if "step" in file.files else None


def column_arrays(answers: Sequence[Rollout | TrainSequence]) -> dict[str, np.ndarray]:
    """The answers' further columns as arrays of a file."""
    return {COLUMN + name: values for name, values in join_columns(answers).items()}


def read_columns(data: Mapping[str, np.ndarray], lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Each answer's further columns, from a file's arrays and the answers' numbers of tokens."""
    joined = {name.removeprefix(COLUMN): values for name, values in data.items() if name.startswith(COLUMN)}
    return split_columns(joined, lengths)
