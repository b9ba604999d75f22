"""Saved batches read back equal, and the gap is what it says."""

import numpy as np
import pytest

from megatron_nft.observe.batches import BatchError, load_batch, save_batch, step_of_batch
from megatron_nft.types import MicroBatch, TrainBatch, TrainSequence


def sequence(length, answer, shift):
    engine = np.linspace(-3, -0.1, answer, dtype=np.float32)
    return TrainSequence(
        token_ids_T=np.arange(length, dtype=np.int32), num_prompt_tokens=length - answer, verdict=float(answer % 2),
        correct_rate=0.25, engine_logprobs_A=engine, old_logprobs_A=engine + np.float32(shift),
    )  # fmt: skip


def test_a_saved_batch_reads_back_equal(tmp_path):
    first, second, third = sequence(9, 4, 0.0), sequence(5, 1, 0.1), sequence(7, 3, 0.2)
    batch = TrainBatch(
        updates=(
            ((MicroBatch(sequences=(first,)),), (MicroBatch(sequences=(second,)),)),
            ((MicroBatch(sequences=(third,)),), (MicroBatch(sequences=()),)),
        )
    )
    save_batch(batch, tmp_path / "batches" / "step_1.npz", 1)
    updates = load_batch(tmp_path / "batches" / "step_1.npz")
    assert [len(update) for update in updates] == [2, 1] and step_of_batch(tmp_path / "batches" / "step_1.npz") == 1
    for mine, saved in zip([first, second, third], [s for update in updates for s in update], strict=True):
        for name in vars(mine):
            np.testing.assert_array_equal(getattr(mine, name), getattr(saved, name))
    assert [p.name for p in (tmp_path / "batches").iterdir()] == ["step_1.npz"]


def test_a_file_that_is_no_batch_is_named(tmp_path):
    with pytest.raises(BatchError, match=r"none\.npz is not a saved batch"):
        load_batch(tmp_path / "none.npz")
    cut = tmp_path / "cut.npz"
    save_batch(TrainBatch(updates=(((MicroBatch(sequences=(sequence(9, 3, 0.1),)),),),)), cut, 1)
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(BatchError, match=r"cut\.npz is not a saved batch"):
        load_batch(cut)
    np.savez(tmp_path / "other.npz", update=np.zeros(3))
    with pytest.raises(BatchError, match="it has no advantage, correct_rate"):
        load_batch(tmp_path / "other.npz")
