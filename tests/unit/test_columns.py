"""A further column of any shape goes from a rollout to the loss, and through every file, by its name alone."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("megatron.core")
from megatron_nft.actor.packed import pack_tokens
from megatron_nft.actor.topology import Topology
from megatron_nft.config import AlgorithmConfig
from megatron_nft.data.packing import pack
from megatron_nft.groups.file import load_groups, save_groups
from megatron_nft.groups.queue import Kept
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import load_batch, save_batch
from megatron_nft.types import MicroBatch, Prompt, Rollout, RolloutGroup, TrainBatch, Verdict

ANSWERS = [[3, 7, 1, 5], [2, 9]]
"""Tokens of each answer of each group; all token ids differ."""
PROMPT = Prompt(
    prompt_id="p/0", text="", token_ids_P=np.arange(900, 904, dtype=np.int32), ground_truth="", data_source="toy"
)


def columns_of(token_ids_A):
    """Values that tell whose token they belong to."""
    return {
        "entropy": token_ids_A.astype(np.float32) / 7,
        "experts": (token_ids_A[:, None, None] % 100 + np.arange(6).reshape(2, 3)).astype(np.int8),
    }


def rollout(first, length):
    token_ids_A = np.arange(first, first + length, dtype=np.int32)
    return Rollout(
        text="",
        token_ids_A=token_ids_A,
        engine_logprobs_A=-token_ids_A.astype(np.float32),
        truncated=False,
        policy_version=0,
        columns=columns_of(token_ids_A),
    )


def judged_groups():
    first = iter(range(0, 900, 50))
    return [
        RolloutGroup(
            prompt=PROMPT,
            rollouts=tuple(rollout(next(first), length) for length in lengths),
            verdicts=tuple(Verdict(kind="right" if i else "wrong", score=0.5 * i / 3) for i in range(len(lengths))),
        )
        for lengths in ANSWERS
    ]


def assert_columns_are_its_own(columns, token_ids_A):
    expected = columns_of(token_ids_A)
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], values)
        assert columns[name].dtype == values.dtype


def through_the_groups_file(groups, folder):
    kept = [Kept(request_id=i, group=group, is_ready=True, is_reported=False) for i, group in enumerate(groups)]
    save_groups(kept, folder / "groups.npz")
    return [item.group for item in load_groups(folder / "groups.npz", {"p/0": PROMPT})]


def train_batch(groups, dp=1):
    sequences = [to_sequences(group, AlgorithmConfig(name="grpo"), max_answer_tokens=16) for group in groups]
    batch = pack(sequences, num_updates=2, dp=dp, tokens_per_microbatch=18)
    return batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=s.engine_logprobs_A + np.float32(0.5)))


def microbatches(batch) -> Iterator[MicroBatch]:
    return (micro for update in batch.updates for rank in update for micro in rank)


def topology(cp_size=1, cp_rank=0):
    return Topology(
        tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, cp_rank=cp_rank, cp_size=cp_size, dp_rank=0, dp_size=1,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("cp", [1, 2])
def test_from_the_rollout_to_the_loss(tmp_path, cp):
    groups = through_the_groups_file(judged_groups(), tmp_path)
    assert [[v.score for v in g.verdicts] for g in groups] == [[v.score for v in g.verdicts] for g in judged_groups()]
    for a in (a for group in groups for a in group.rollouts):
        assert_columns_are_its_own(a.columns, a.token_ids_A)
    batch = train_batch(groups)
    save_batch(batch, tmp_path / "batch.npz", 1)
    stored = load_batch(tmp_path / "batch.npz")
    for s in [*batch.sequences, *(s for update in stored for s in update)]:
        assert_columns_are_its_own(s.columns, s.token_ids_T[s.num_prompt_tokens :])
    again = pack(stored, num_updates=2, dp=1, tokens_per_microbatch=18)
    assert len(again.sequences) == 6
    for micro in (m for m in microbatches(again) if m.sequences):
        answers_A = np.concatenate([s.token_ids_T[s.num_prompt_tokens :] for s in micro.sequences])
        packs = [pack_tokens(micro, topology(cp, rank)) for rank in range(cp)]
        for packed in packs:  # every rank of a context-parallel group computes the loss of all answer tokens
            columns = packed.take(["experts", "entropy"])
            assert columns["experts"].dtype == torch.int8 and columns["experts"].shape == (len(answers_A), 2, 3)
            assert_columns_are_its_own({name: x.numpy() for name, x in columns.items()}, answers_A)
            assert packed.columns["engine_logprobs"].tolist() == (-answers_A).tolist()
            assert packed.columns["old_logprobs"].tolist() == (0.5 - answers_A).tolist()
        # In the order in which the ranks' log-probs come together.
        most = packs[0].gather_most
        labels = torch.cat([torch.cat([p.labels_O, p.labels_O.new_zeros(most - len(p.labels_O))]) for p in packs])
        assert labels[packs[0].gather_A].tolist() == answers_A.tolist()


def test_an_empty_microbatch_has_the_columns_too():
    batch = train_batch(judged_groups()[1:] * 2, dp=3)
    empty = [micro for micro in microbatches(batch) if not micro.sequences]
    assert empty, "two answers for three ranks"
    for micro in empty:
        packed = pack_tokens(micro, topology())
        assert packed.weights_A.tolist() == [0.0]
        assert packed.columns["entropy"].tolist() == [0.0] and packed.columns["entropy"].dtype == torch.float32
        assert packed.columns["experts"].tolist() == [[[0] * 3] * 2] and packed.columns["experts"].dtype == torch.int8
    full = next(micro for micro in microbatches(batch) if micro.sequences)
    assert full.emptied.blank.keys() == empty[0].blank.keys() and empty[0].emptied is empty[0]


def test_files_without_further_columns_are_read(tmp_path):
    """What earlier versions have written: neither scores nor further columns."""
    groups = judged_groups()
    through_the_groups_file(groups, tmp_path)
    save_batch(train_batch(groups), tmp_path / "batch.npz", 1)
    for name in ("groups.npz", "batch.npz"):
        with np.load(tmp_path / name) as file:
            left = {key: file[key] for key in file.files if key != "score" and not key.startswith("column/")}
        np.savez(tmp_path / name, **left)
    loaded = [item.group for item in load_groups(tmp_path / "groups.npz", {"p/0": PROMPT})]
    assert [r.columns for g in loaded for r in g.rollouts] == [{}] * 6
    assert [v.score for g in loaded for v in g.verdicts] == [None] * 6
    for mine, theirs in zip(groups, loaded, strict=True):
        for a, b in zip(mine.rollouts, theirs.rollouts, strict=True):
            np.testing.assert_array_equal(a.engine_logprobs_A, b.engine_logprobs_A)
    assert [s.columns for update in load_batch(tmp_path / "batch.npz") for s in update] == [{}] * 6


def test_columns_that_do_not_fit_are_refused():
    def answer(**columns):
        return Rollout(
            text="", token_ids_A=np.arange(3, dtype=np.int32), engine_logprobs_A=np.zeros(3, np.float32),
            truncated=False, policy_version=0, columns=columns,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"'x' is float64 \[2, 1\]; it must have a row .* answer's 3 tokens"):
        answer(x=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="'x' is object"):
        answer(x=np.array([1, "a", None], object))
    with pytest.raises(ValueError, match="can't be named 'old_logprobs'"):
        answer(old_logprobs=np.zeros(3))
    group = RolloutGroup(
        prompt=PROMPT,
        rollouts=(answer(x=np.zeros(3)), answer(x=np.zeros(3, np.float32))),
        verdicts=(Verdict(kind="right"), Verdict(kind="wrong")),
    )
    batch = TrainBatch.of([[[to_sequences(group, AlgorithmConfig(), max_answer_tokens=4)]]])
    with pytest.raises(ValueError, match=r"different columns, \['x: float32\[\]'\] and \['x: float64\[\]'\]"):
        pack_tokens(batch.updates[0][0][0], topology())


def test_a_microbatch_is_scored_or_finds_its_old_log_probs_itself():
    micro = max(microbatches(train_batch(judged_groups()[:1] * 2)), key=lambda m: len(m.sequences))
    scored = micro.sequences[0]
    assert pack_tokens(micro, topology()).is_scored
    unscored = replace(micro, sequences=tuple(replace(s, old_logprobs_A=None) for s in micro.sequences))
    packed = pack_tokens(unscored, topology())
    own_A = torch.linspace(-2, -1, len(packed.weights_A), requires_grad=True)
    old_A = packed.with_old_logprobs(own_A).columns["old_logprobs"]
    assert not packed.is_scored and old_A.equal(own_A) and not old_A.requires_grad
    with pytest.raises(ValueError, match="some answers of a microbatch have old_logprobs and some have none"):
        pack_tokens(replace(micro, sequences=(scored, *unscored.sequences[1:])), topology())
