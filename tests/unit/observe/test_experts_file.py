"""Answers' experts in the files of checkpoints and batches: as they were, wherever they were; lost ones known to be."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from megatron_nft.groups.file import fitting, load_groups, save_groups
from megatron_nft.groups.queue import Kept
from megatron_nft.observe.batches import load_batch, save_batch
from megatron_nft.types import Elsewhere, MicroBatch, Prompt, Rollout, RolloutGroup, TrainBatch, TrainSequence, Verdict

PROMPT = Prompt(prompt_id="p/0", text="", token_ids_P=np.arange(3, dtype=np.int32), ground_truth="", data_source="toy")


@dataclass(frozen=True)
class Far(Elsewhere):
    """Of an array, or of the rows of it that are left."""

    array: np.ndarray
    left: int | None = None

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def load(self):
        return self.array[: self.left]


def rows(length, dtype=np.uint8):
    return np.random.default_rng(length).integers(0, 200, (length + 2, 3, 2)).astype(dtype)


def group(*experts):
    rollouts = [
        Rollout(
            text="", token_ids_A=np.arange(length, dtype=np.int32), engine_logprobs_A=np.zeros(length, np.float32),
            truncated=False, policy_version=0, experts_R=of,
        )
        for length, of in experts
    ]  # fmt: skip
    verdicts = tuple(Verdict(kind="right" if i % 2 else "wrong") for i in range(len(rollouts)))
    return RolloutGroup(prompt=PROMPT, rollouts=tuple(rollouts), verdicts=verdicts)


def kept(*groups):
    return [Kept(request_id=i, group=g, is_ready=True, is_reported=False) for i, g in enumerate(groups)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_through_a_checkpoint(tmp_path, dtype):
    groups = [group((4, rows(4, dtype)), (1, Far(rows(1, dtype)))), group((6, Far(rows(6, dtype), left=0)), (2, None))]
    save_groups(kept(*groups), tmp_path / "groups.npz")
    found = [r.experts_R for item in load_groups(tmp_path / "groups.npz", {"p/0": PROMPT}) for r in item.group.rollouts]
    np.testing.assert_array_equal(found[0], rows(4, dtype))
    np.testing.assert_array_equal(found[1], rows(1, dtype))
    assert found[2].shape == (0, 3, 2) and found[3] is None and {x.dtype for x in found[:3]} == {np.dtype(dtype)}


def test_through_a_batch_file(tmp_path):
    def sequence(length, experts):
        return TrainSequence(
            token_ids_T=np.arange(3 + length, dtype=np.int32), num_prompt_tokens=3, verdict=1.0, correct_rate=0.5,
            engine_logprobs_A=np.zeros(length, np.float32), old_logprobs_A=np.zeros(length, np.float32),
            experts_R=experts,
        )  # fmt: skip

    updates = [[sequence(4, Far(rows(4)))], [sequence(2, rows(2)), sequence(5, Far(rows(5), left=3))]]
    batch = TrainBatch(updates=tuple(((MicroBatch(sequences=tuple(update)),),) for update in updates))
    save_batch(batch, tmp_path / "step_1.npz", 1)
    found = [s.experts_R for update in load_batch(tmp_path / "step_1.npz") for s in update]
    for array, expected in zip(found, (rows(4), rows(2), rows(5)[:3]), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_models_are_not_mixed(tmp_path):
    with pytest.raises(ValueError, match="experts of different models"):
        save_groups(kept(group((4, rows(4)), (2, rows(2)[:, :2]))), tmp_path / "groups.npz")


def test_a_group_from_a_run_with_another_setting():
    """One without the experts that are to be replayed is sampled again; they are left out where none are."""
    with_experts, without = kept(group((4, Far(rows(4)))), group((4, None)))
    assert fitting(with_experts, True) == with_experts
    assert fitting(without, True) == replace(without, is_ready=False)
    assert [r.experts_R for r in fitting(with_experts, False).group.rollouts] == [None]
    assert fitting(with_experts, False).is_ready and fitting(without, False).is_ready


def test_more_rows_than_tokens_are_refused():
    with pytest.raises(ValueError, match="experts of 9 tokens, and the sequence has 5"):
        TrainSequence(
            token_ids_T=np.arange(5, dtype=np.int32), num_prompt_tokens=3, verdict=1.0, correct_rate=0.5,
            engine_logprobs_A=np.zeros(2, np.float32), experts_R=np.zeros((9, 3, 2), np.uint8),
        )  # fmt: skip
